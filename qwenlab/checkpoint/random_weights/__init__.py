"""Checkpoints with random weights, of the sizes of published ones."""
