"""How adapters get into a frozen `transformers` decoder: named places, the attention route, loading."""
