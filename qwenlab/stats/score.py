"""Names of the scores of ablations, without imports, so that the command line can list them."""

from typing import Literal, TypeAlias

Score: TypeAlias = Literal["loss", "accuracy", "kl", "agreement"]
"""Scores that compare the ablated with the intact model, on the scored tokens of a task."""
