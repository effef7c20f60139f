"""Jobs of a sweep in a cluster's queue: what the client that submitted them needs."""
