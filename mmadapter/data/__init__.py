"""Data: readers, templates, tokens, pictures, batches and mixtures; stands on its own."""
