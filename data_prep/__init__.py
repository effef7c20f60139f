"""Preparation of data sets: `python -m data_prep.NAME`, from downloads (or the made-up world) to checked files."""
