"""The trainable parts of LLaMA-Adapter, as plain torch modules that declare the roles of their parameters."""
