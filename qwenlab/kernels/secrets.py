"""Parameters that must not be written down: keys, tokens, passwords."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

HIDDEN = "•••"
_ENDINGS = ("key", "token", "secret", "password")


def is_secret(name: str) -> bool:
    """Whether a parameter of this name is kept out of notebooks and facts: `hf_token`, `api_key`; not `max_tokens`."""
    return name.lower().rpartition("_")[2] in _ENDINGS


def redacted(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, with HIDDEN in the place of every secret that is set."""
    return {name: HIDDEN if is_secret(name) and value else value for name, value in parameters.items()}


def without(text: str, parameters: Mapping[str, Any]) -> str:
    """Text in which no secret of these parameters occurs, written plainly or as JSON."""
    for name, value in parameters.items():
        if is_secret(name) and isinstance(value, str) and value:
            for written in {value, json.dumps(value)[1:-1], json.dumps(json.dumps(value))[3:-3]}:
                text = text.replace(written, HIDDEN)
    return text
