"""The ways to match random controls to an ablation, without imports, so that the command line can list them."""

from typing import Literal, TypeAlias, get_args

Match: TypeAlias = Literal["number", "kind", "parameters"]
MATCHES: tuple[Match, ...] = get_args(Match)
