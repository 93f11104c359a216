"""Registry of active interventions, for probes that recompute what an intervention may have replaced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from qwenlab.capture.lanes import placed

What = Literal["rule", "states"]
"""What an intervention changes: the delta rule itself, or the states between forward passes."""

_changes: WeakKeyDictionary[nn.Module, list[tuple[What, str, frozenset[int]]]] = WeakKeyDictionary()
"""By stack of layers: what is changed, by which intervention, in which layers."""

_names: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()
"""By stack of layers: the active interventions, in the order in which they began."""


@contextmanager
def listed_as_active(stack: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Context manager that lists these interventions, by their repr, as active."""
    active = _names.setdefault(stack, [])

    def remove() -> None:
        for name in names:
            active.remove(name)

    with placed(lambda: active.extend(names), remove):
        yield


def active_interventions(stack: nn.Module) -> tuple[str, ...]:
    """Return the reprs of the interventions that are active on a stack of layers, those of outer blocks first."""
    return tuple(_names.get(stack, ()))


@contextmanager
def replacing(stack: nn.Module, what: What, intervention: str, layers: Iterable[int]) -> Iterator[None]:
    """Context manager that registers an intervention which changes the rule or the states of these layers."""
    entry = (what, intervention, frozenset(layers))
    changes = _changes.setdefault(stack, [])
    with placed(lambda: changes.append(entry), lambda: changes.remove(entry)):
        yield


def replaced_by(stack: nn.Module, what: What, layers: Iterable[int]) -> str | None:
    """Return the repr of an intervention that changes this in any of these layers; None if there is none."""
    changes = _changes.get(stack)
    if not changes:
        return None
    layers = frozenset(layers)
    return next((intervention for kind, intervention, where in changes if kind == what and where & layers), None)


def mark_mask(mask: torch.Tensor) -> None:
    """Mark a mask that an intervention gives to the attention function of a layer."""
    mask._of_intervention = True  # type: ignore[attr-defined]


def mask_of_intervention(mask: torch.Tensor | None) -> torch.Tensor | None:
    """Return bool [batch, 1 or head, position, key], True for visible keys; None if no intervention made this mask."""
    if mask is None or not getattr(mask, "_of_intervention", False):
        return None
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
