"""Readers: files in their publishers' layouts to lists of samples."""
