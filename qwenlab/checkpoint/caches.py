"""How a function of transformers takes and returns its cache, under any of the names that its versions use."""

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
"""Argument names of the cache: since transformers 5.24, and before."""

TESTED = "transformers>=5.17,<5.25"
"""The releases that the tests ran on, as pyproject.toml bounds them."""


@lru_cache(maxsize=128)
def cache_argument(function: Callable[..., Any]) -> str:
    """The name of the argument that takes the cache: one annotated as a `Cache`, else one of `NAMES`.

    function  a function, such as `type(module).forward`: decorators that keep its signature are looked through

    Raises UnsupportedTransformers where no argument takes a cache, or more than one could.
    """
    parameters = inspect.signature(function).parameters
    found = [name for name, each in parameters.items() if _is_cache(each.annotation)]
    found = found or [name for name in NAMES if name in parameters]
    if len(found) != 1:
        where = f"{function.__module__}.{function.__qualname__}"
        problem = f"has {len(found)} arguments for a cache ({', '.join(found)})" if found else "takes no cache"
        raise UnsupportedTransformers(
            f"{where} of transformers {transformers.__version__} {problem}: qwenlab cannot follow a sequence from one "
            f"call to the next. Its arguments are {', '.join(parameters)}.\n"
            f"Install a tested version: pip install '{TESTED}'."
        )
    return found[0]


def cached_by(model: nn.Module) -> dict[str, Cache]:
    """A new, empty cache for a model, as the keyword argument that each of its calls takes."""
    return {cache_argument(type(model).forward): DynamicCache(config=decoder_of(model).module.config)}


def first_cache(values: Iterable[Any]) -> Cache | None:
    """The first transformers cache among some values; None where there is none."""
    return next((value for value in values if isinstance(value, Cache)), None)


def _is_cache(annotation: Any) -> bool:
    """Whether an annotation is `Cache`, or a union or a string with it."""
    members = getattr(annotation, "__args__", (annotation,))
    if isinstance(annotation, str):
        return "Cache" in annotation.replace(" ", "").replace("|None", "").split("|")
    return any(isinstance(member, type) and issubclass(member, Cache) for member in members)
