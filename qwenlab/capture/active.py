"""Registry of active interventions, for probes that recompute what an intervention may have replaced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from qwenlab.capture.lanes import placed

What = Literal["rule", "states"]
"""What an intervention changes: the delta rule itself, or the states between forward passes."""

_entries: WeakKeyDictionary[nn.Module, list[tuple[What | None, str, frozenset[int]]]] = WeakKeyDictionary()
"""By stack of layers: what is changed, by which intervention, in which layers; None for the list of active ones."""


@contextmanager
def _listed(stack: nn.Module, what: What | None, names: Iterable[str], layers: Iterable[int]) -> Iterator[None]:
    entries, added = _entries.setdefault(stack, []), [(what, name, frozenset(layers)) for name in names]

    def remove() -> None:
        for entry in added:
            entries.remove(entry)

    with placed(lambda: entries.extend(added), remove):
        yield


def listed_as_active(stack: nn.Module, names: Sequence[str]) -> AbstractContextManager[None]:
    """Context manager that lists these interventions, by their repr, as active."""
    return _listed(stack, None, names, ())


def active_interventions(stack: nn.Module) -> tuple[str, ...]:
    """Return the reprs of the interventions that are active on a stack of layers, those of outer blocks first."""
    return tuple(name for what, name, _ in _entries.get(stack, ()) if what is None)


def replacing(stack: nn.Module, what: What, intervention: str, layers: Iterable[int]) -> AbstractContextManager[None]:
    """Context manager that registers an intervention which changes the rule or the states of these layers."""
    return _listed(stack, what, [intervention], layers)


def replaced_by(stack: nn.Module, what: What, layers: Iterable[int]) -> str | None:
    """Return the repr of an intervention that changes this in any of these layers; None if there is none."""
    found = (name for kind, name, where in _entries.get(stack, ()) if kind == what and not where.isdisjoint(layers))
    return next(found, None)


def mark_mask(mask: torch.Tensor) -> None:
    """Mark a mask that an intervention gives to the attention function of a layer."""
    mask._of_intervention = True  # type: ignore[attr-defined]


def mask_of_intervention(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return bool [batch, 1 or head, position, key], True for visible keys; None if no intervention made this mask."""
    if mask is None or not getattr(mask, "_of_intervention", False):
        return None
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
