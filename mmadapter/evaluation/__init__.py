"""Evaluation: generate answers, score them, print the scores beside the papers' rows, write the report."""
