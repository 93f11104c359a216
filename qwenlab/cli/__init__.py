"""The command `qwenlab`: checkpoints and experiments, from a shell."""

from qwenlab.cli.main import app, main

__all__ = ["app", "main"]
