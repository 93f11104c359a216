"""Names of qwenlab before and after a refactoring: add a row here for everything that is renamed.

The cases use the names before. In each checkout a name after is used where it exists, and the name before elsewhere, so
that a checkout of any date in between works too.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from functools import reduce
from typing import Any

# fmt: off
INTERVENTIONS = (
    "zero", "scale", "mean", "resample", "noise", "identity",
    "patch", "set_gate", "no_sink", "window", "freeze_state", "no_conv",
    "no_key_removal", "reset_state", "state_dtype", "force_experts", "mask_experts", "no_shared_expert",
    "shuffle_router", "top_k", "uniform_router",
)
# fmt: on
CLASSES = {name: name.title().replace("_", "") for name in INTERVENTIONS}

PACKAGES = {"probe": "probes", "decode": "speculative", "kernels": "execution", "runs": "experiments"}
"""Packages: all of their names that are not in `RENAMED`."""

RENAMED: dict[str, str] = {
    "edit": "intervene",
    "probe.take": "interventions.cache_activations",
    **{f"probe.{old}": f"interventions.{new}" for old, new in CLASSES.items()},
    "decode.chains": "speculative.draft_chains",
    "decode.custom_generate": "speculative.CustomGenerate",
    "decode.Replay": "speculative.ReplayRollback",
    "decode.Rerun": "speculative.RerunRollback",
    "plots.openness_by_token": "plots.gate_by_token",
    "runs.ablate": "recipes.ablate",
    "tasks.read": "tasks.feed",
    "stats.over_texts": "stats.mean_over_texts",
}
"""Public names, without "qwenlab.": {"probe.zero": "interventions.Zero"}."""

REMOVED: set[str] = {"tasks.score", "tasks.teacher_forced"}
"""Public names that no longer exist. Cases that use one are left out on both sides."""

KEYWORDS: dict[str, dict[str, str]] = {
    "tasks.needle": {"depth": "position"},
    "ablations.units": {"edit": "intervention"},
    "ablations.controls": {"among": "pool"},
    "ablations.sweep": {"keep": "resume"},
    "runs.ablate": {"keep": "resume"},
    "probe.mean": {"over": "cache"},
    **{f"probe.{name}": {"of": "cache"} for name in ("patch", "resample")},
    "probe.Retention": {"stored": "store_ids", "asked": "query_ids"},
}
"""Arguments, by the name before of their function or class: {"probe.mean": {"over": "reference"}}."""

ATTRIBUTES: dict[str, str] = {"edits": "interventions", "fired": "hits", "of": "unit"}
"""Attributes and methods of the objects that cases use: {"ledger": "rounds"}."""

ARGUMENTS: dict[str, tuple[str, str]] = {}
"""Text arguments, each with a name that only checkouts with the new text have: {"kl": ("divergence", "stats.kl")}."""

FIELDS: dict[str, str] = {
    "edits": "interventions",
    "edit": "intervention",
    **{f"{of}harm{part}": f"{of}effect{part}" for of in ("", "control_") for part in ("", "_interval")},
    "beyond_controls": "effect_above_controls",
    "beyond_controls_interval": "effect_above_controls_interval",
    "stands": "significant",
    **{f"openness{part}": f"mean_gate{part}" for part in ("", "_interval", "_share", "_quantile", "_sum")},
    "handover": "transition",
    "floor": "noise_floor",
    "differing": "differing_tokens",
    "trunk_rms": "target_rms",
    "kept_sum": "repeated_sum",
    "of": "unit",
    "p_beyond": "p_above_controls",
    "p_beyond_holm": "p_above_controls_holm",
}
"""Variables, dims, attributes, nodes and fields of results: {"harm": "effect", "rounds/number": "rounds/index"}."""

TEXTS: dict[str, str] = {
    **{f"{old}(": f"{new}(" for old, new in CLASSES.items()},
    "over=ActivationCache(": "cache=ActivationCache(",
    "of=ActivationCache(": "cache=ActivationCache(",
    "over_texts": "mean_over_texts",
    "experts kept from the token before": "experts repeated from the token before",
    "scaled like the trunk": "scaled like the target model",
    '"stored":': '"store_ids":',
    '"asked":': '"query_ids":',
    "unedited": "intact",
    "edited": "ablated",
}
"""Words within text results (attributes and labels, such as the edits of a recording): {"zero": "Zero"}."""


class Removed(Exception):
    """A case uses a name in `REMOVED`."""


def path(name: str) -> str:
    """The name that this checkout has, without "qwenlab."; raises Removed."""
    if name in REMOVED:
        raise Removed(name)
    package, _, rest = name.partition(".")
    new = RENAMED.get(name, f"{PACKAGES.get(package, package)}.{rest}" if rest else name)
    return new if exists(new) else name


def get(name: str) -> Any:
    """The object with a name, taking the keywords before."""
    found = _find(path(name))
    return _renaming(found, KEYWORDS[name]) if name in KEYWORDS else found


def of(owner: Any, attribute: str) -> Any:
    """An attribute of an object, under the name that this checkout has."""
    new = ATTRIBUTES.get(attribute, attribute)
    return getattr(owner, new if hasattr(owner, new) else attribute)


def text(argument: str) -> str:
    """A text argument, as this checkout takes it."""
    new, since = ARGUMENTS.get(argument, (argument, ""))
    return new if exists(since) else argument


def exists(name: str) -> bool:
    """Whether this checkout has a name."""
    try:
        _find(name)
    except (AttributeError, ImportError):
        return False
    return True


def renamed(found: str, table: dict[str, str]) -> str:
    """A text with whole words replaced by a table; a row with more words goes first."""
    if not table:
        return found
    rows = sorted(table, key=len, reverse=True)
    pattern = re.compile(r"(?<!\w)(" + "|".join(map(re.escape, rows)) + r")(?:(?<=\()|(?!\w))")
    return pattern.sub(lambda match: table[match[0]], found)


def _find(name: str) -> Any:
    return reduce(getattr, name.split(".") if name else [], importlib.import_module("qwenlab"))


def _renaming(function: Callable[..., Any], keywords: dict[str, str]) -> Callable[..., Any]:
    has = inspect.signature(function).parameters
    renamed = {old: new for old, new in keywords.items() if new in has}

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{renamed.get(name, name): value for name, value in kwargs.items()})

    return call
