"""Capture tensors while a model runs: hooks, sequences that are followed across calls, tokens without padding."""

__all__: list[str] = []
