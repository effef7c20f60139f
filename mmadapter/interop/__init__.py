"""Other people's files: what brings weights into this project's forms, and out of them."""
