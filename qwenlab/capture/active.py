"""What edits have put in the place of a model's own ways: for those that work these out again beside the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

What = Literal["rule", "states"]
"""Another rule runs in the place of the delta rule; states are changed between forward passes."""

_changed: WeakKeyDictionary[nn.Module, list[tuple[What, str, frozenset[int]]]] = WeakKeyDictionary()
"""By stack of layers: what is changed, by which edit, in which layers."""

_names: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()
"""By stack of layers: the active interventions, in the order in which they began."""

_masks: WeakKeyDictionary[nn.Module, torch.Tensor] = WeakKeyDictionary()
"""By attention mixer: the mask that an edit gave its newest call, while the pass runs."""


@contextmanager
def listed_as_active(stack: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """List these interventions, by the text that writes them, as active for the length of a block."""
    _names.setdefault(stack, []).extend(names)
    try:
        yield
    finally:
        for name in names:
            _names[stack].remove(name)


def active_interventions(stack: nn.Module) -> tuple[str, ...]:
    """The interventions that are active on a stack of layers, as they are written, those of outer blocks first."""
    return tuple(_names.get(stack, ()))


@contextmanager
def replacing(stack: nn.Module, what: What, edit: str, layers: Iterable[int]) -> Iterator[None]:
    """Let it be known that an edit changes this in these layers, for the length of a block."""
    entry = (what, edit, frozenset(layers))
    _changed.setdefault(stack, []).append(entry)
    try:
        yield
    finally:
        _changed[stack].remove(entry)


def replaced_by(stack: nn.Module, what: What, layers: Iterable[int]) -> str | None:
    """The edit that changes this in one of these layers, as it is written; None where there is none."""
    held = _changed.get(stack)
    if not held:
        return None
    asked = frozenset(layers)
    return next((edit for kind, edit, where in held if kind == what and where & asked), None)


def set_mask(mixer: nn.Module, mask: torch.Tensor) -> None:
    """An edit gives a layer's attention function this mask."""
    _masks[mixer] = mask


def clear_mask(mixer: nn.Module) -> None:
    """The pass is over."""
    _masks.pop(mixer, None)


def mask_of_intervention(mixer: nn.Module, mask: torch.Tensor | None) -> torch.Tensor | None:
    """bool [batch, 1 or head, position, key]: what a call with this mask may look at; None where no edit made it."""
    if mask is None or _masks.get(mixer) is not mask:
        return None
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
