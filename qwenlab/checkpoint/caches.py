"""Find the cache argument of transformers functions, under any name that a supported version uses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import transformers
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.errors import UnsupportedTransformers

NAMES = ("cache", "past_key_values")
"""Names of the cache argument: since transformers 5.24, and before."""

TESTED = "transformers>=5.17,<5.25"
"""The releases that the tests ran on, as pyproject.toml bounds them."""


@lru_cache(maxsize=128)
def cache_argument(function: Callable[..., Any]) -> str:
    """Return the name of the cache argument: the one annotated as a `Cache`, else one of `NAMES`.

    function  a function, such as `type(module).forward`; it may have decorators that keep its signature

    Raises UnsupportedTransformers if no argument takes a cache, or more than one could.
    """
    parameters = inspect.signature(function).parameters
    names = [name for name, parameter in parameters.items() if _is_cache(parameter.annotation)]
    names = names or [name for name in NAMES if name in parameters]
    if len(names) != 1:
        where = f"{function.__module__}.{function.__qualname__}"
        problem = f"has {len(names)} cache arguments ({', '.join(names)})" if names else "has no cache argument"
        raise UnsupportedTransformers(
            f"{where} of transformers {transformers.__version__} {problem}: qwenlab cannot follow a sequence from one "
            f"call to the next. Its arguments are {', '.join(parameters)}.\n"
            f"Install a tested version: pip install '{TESTED}'."
        )
    return names[0]


def cached_by(model: nn.Module) -> dict[str, Cache]:
    """Return an empty cache as the keyword argument for every call of the model: `model(ids, **cached_by(model))`."""
    return {cache_argument(type(model).forward): DynamicCache(config=decoder_of(model).module.config)}


def first_cache(values: Iterable[Any]) -> Cache | None:
    """Return the first transformers cache among the values, or None."""
    return next((value for value in values if isinstance(value, Cache)), None)


def _is_cache(annotation: Any) -> bool:
    """Whether an annotation is `Cache`, or a union or string that includes it."""
    members = getattr(annotation, "__args__", (annotation,))
    if isinstance(annotation, str):
        return "Cache" in annotation.replace(" ", "").replace("|None", "").split("|")
    return any(isinstance(member, type) and issubclass(member, Cache) for member in members)
