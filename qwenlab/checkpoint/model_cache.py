"""Checkpoints that stay open from one notebook to the next, in a kernel that is kept for many."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from qwenlab.checkpoint.open import Checkpoint

CHUNK = 2**22
"""Words of a tensor that are added up at a time."""


@dataclass
class CachedModel:
    """A checkpoint, what it was like when it was opened, and whether this notebook has asked for it."""

    checkpoint: Checkpoint
    state: str
    taken: bool = True


@dataclass
class ModelCache:
    """What `ql.open` asks first. Unless `keep()` was called it keeps nothing.

    A checkpoint is given out once a notebook, so two that are opened in one notebook are two, as ever. Those that the
    notebook before asked for are held; before another is read, those that this one has not asked for are let go, so
    that no more is in memory than a notebook of its own would have held.
    """

    loads: int = 0
    _keeping: bool = False
    _held: dict[Hashable, CachedModel] = field(default_factory=dict)

    def keep(self) -> None:
        """From now on, hold on to what is opened."""
        self._keeping = True

    def start(self) -> None:
        """A notebook begins."""
        self.loads = 0
        for held in self._held.values():
            held.taken = False

    def check(self) -> list[str]:
        """Let go of those that are no longer as they were opened, and of those nobody asked for; name the former."""
        changed = []
        for key, held in list(self._held.items()):
            if not held.taken:
                del self._held[key]
            elif state(held.checkpoint) != held.state:
                changed.append(held.checkpoint.facts.source)
                del self._held[key]
        return changed

    def opened(self, key: Hashable, read: Callable[[], Checkpoint]) -> Checkpoint:
        """The checkpoint held under this key, or one that is read now."""
        held = self._held.get(key)
        if held is not None and not held.taken:
            held.taken = True
            return held.checkpoint
        for other, idle in list(self._held.items()):
            if not idle.taken:
                del self._held[other]
        self.loads += 1
        checkpoint = read()
        if self._keeping and key not in self._held:
            self._held[key] = CachedModel(checkpoint, state(checkpoint))
        return checkpoint


kept = ModelCache()
"""The one of this process."""


def state(checkpoint: Checkpoint) -> str:
    """A hash of all that a notebook can change of a checkpoint: weights, attributes, hooks, configs, tokenizer."""
    lines = "\n".join(_lines(checkpoint))
    return hashlib.sha256(lines.encode()).hexdigest()


def _lines(checkpoint: Checkpoint) -> Iterator[str]:
    for root in (checkpoint.model, checkpoint.mtp):
        if root is None:
            continue
        for name, module in root.named_modules():
            hooks = sum(len(getattr(module, each)) for each in _HOOKS)
            own = [f"{key}={_written(value)}" for key, value in vars(module).items() if key not in _OF_TORCH]
            yield f"{name} {type(module).__qualname__} {module.training} {hooks} {sorted(own)}"
        for name, tensor in _tensors(root):
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device} {tensor.requires_grad} {digest(tensor)}"
            yield f"{tensor.grad is not None}"
    tokenizer = checkpoint.tokenizer
    yield f"{tokenizer.padding_side} {tokenizer.truncation_side} {len(tokenizer)} {tokenizer.special_tokens_map}"
    for config in (checkpoint.model.config, checkpoint.model.generation_config):
        yield config.to_json_string() if config is not None else ""
    yield str(checkpoint.model.config._attn_implementation)


def _written(value: object) -> str:
    """A plain value as it is written; of any other, which object it is."""
    plain = isinstance(value, (bool, int, float, str, tuple, type(None)))
    return repr(value) if plain else f"{type(value)} {id(value)}"


_OF_TORCH = vars(nn.Module()).keys()
"""Attributes that every module has, which are compared in their own ways."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _tensors(root: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from root.named_parameters()
    yield from root.named_buffers()


def digest(tensor: torch.Tensor) -> str:
    """A hash of a tensor's bytes; on a GPU, their `place_sum`, made there."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if flat.device.type == "cpu":
        return hashlib.sha256(flat.numpy().data).hexdigest()
    return str(place_sum(flat))


def place_sum(flat: torch.Tensor) -> int:
    """A sum of bytes [n] in which each counts by its place, modulo 2^64."""
    words = torch.nn.functional.pad(flat, (0, -flat.numel() % 4)).view(torch.int32)
    weights = torch.arange(1, min(CHUNK, words.numel()) + 1, device=words.device) * 0x2545F491 + 0x9E3779B1
    found = torch.zeros((), dtype=torch.int64, device=words.device)
    for chunk in words.split(CHUNK):
        found = found * 31 + (chunk.long() * weights[: chunk.numel()]).sum()
    return int(found)
