"""The scores by which ablations are compared, without imports, so that the command line can list them."""

from typing import Literal, TypeAlias

Score: TypeAlias = Literal["loss", "accuracy", "kl", "agreement"]
"""Each compares the edited with the unedited model, on the tokens that a task asks for."""
