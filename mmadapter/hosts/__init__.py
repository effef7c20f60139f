"""How adapters get into a frozen `transformers` decoder: projection recipes, the attention route, loading."""
