"""A run's folder: its journal, its state, the list of all runs; and the folder of a sweep."""
