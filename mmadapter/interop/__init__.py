"""Other people's files: what brings their weights into this project's forms."""
