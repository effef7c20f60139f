"""Benchmarks: what each reads, asks, parses, scores and shows."""
