"""Cache of open checkpoints, so that notebooks in one warm kernel load a checkpoint only once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.checkpoint.weights.in_files import where_stored

CHUNK = 2**22
"""32-bit words of a tensor that are summed at a time."""


@dataclass
class CachedModel:
    """A checkpoint, its `state` when it was opened, and whether the current notebook uses it."""

    checkpoint: Checkpoint
    state: str
    used: bool = True


@dataclass
class ModelCache:
    """Cache behind `ql.open`; it keeps nothing until it is `enabled`.

    A cached checkpoint is returned once per notebook, so opening it twice in one notebook gives two objects, as without
    the cache. Before another checkpoint is loaded, those that the current notebook has not used are dropped, so that
    memory use is never higher than without the cache.
    """

    loads: int = 0
    enabled: bool = False
    _models: dict[Hashable, CachedModel] = field(default_factory=dict)

    def start(self) -> None:
        """Start a notebook: reset `loads`, and mark every checkpoint as not used."""
        self.loads = 0
        for cached in self._models.values():
            cached.used = False

    def drop_changed(self) -> list[str]:
        """Drop checkpoints that changed since they were opened, and unused ones; return the names of the former."""
        self._drop_unused()
        changed = [key for key, cached in self._models.items() if state(cached.checkpoint) != cached.state]
        return [self._models.pop(key).checkpoint.facts.source for key in changed]

    def opened(self, key: Hashable, read: Callable[[], Checkpoint]) -> Checkpoint:
        """Return the cached checkpoint of this key, or load it with `read`."""
        cached = self._models.get(key)
        if cached is not None and not cached.used:
            cached.used = True
            return cached.checkpoint
        self._drop_unused()
        self.loads += 1
        checkpoint = read()
        if self.enabled and key not in self._models:
            self._models[key] = CachedModel(checkpoint, state(checkpoint))
        return checkpoint

    def _drop_unused(self) -> None:
        self._models = {key: cached for key, cached in self._models.items() if cached.used}


opened_models = ModelCache()
"""The cache of this process."""


def state(checkpoint: Checkpoint) -> str:
    """Hash everything that a notebook can change in a checkpoint: weights, attributes, hooks, configs, tokenizer."""
    return hashlib.sha256("\n".join(_state_lines(checkpoint)).encode()).hexdigest()


def _state_lines(checkpoint: Checkpoint) -> Iterator[str]:
    for root in (checkpoint.model, checkpoint.mtp):
        if root is None:
            continue
        for name, module in root.named_modules():
            hooks = sum(len(getattr(module, name)) for name in _HOOKS)
            own = [f"{key}={_repr_or_id(value)}" for key, value in vars(module).items() if key not in _OF_TORCH]
            yield f"{name} {type(module).__qualname__} {module.training} {hooks} {sorted(own)}"
        for name, tensor in (*root.named_parameters(), *root.named_buffers()):
            values = where_stored(tensor) or digest(tensor)
            yield f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device} {tensor.requires_grad} {values}"
            yield f"{tensor.grad is not None}"
    tokenizer = checkpoint.tokenizer
    yield f"{tokenizer.padding_side} {tokenizer.truncation_side} {len(tokenizer)} {tokenizer.special_tokens_map}"
    for config in (checkpoint.model.config, checkpoint.model.generation_config):
        yield config.to_json_string() if config is not None else ""
    yield str(checkpoint.model.config._attn_implementation)


def _repr_or_id(value: object) -> str:
    """The repr of a plain value; the type and id of any other object."""
    plain = isinstance(value, (bool, int, float, str, tuple, type(None)))
    return repr(value) if plain else f"{type(value)} {id(value)}"


_OF_TORCH = vars(nn.Module()).keys()
"""Attributes of every module; they are compared separately."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def digest(tensor: torch.Tensor) -> str:
    """A hash of a tensor's bytes; on a GPU their `weighted_sum`, which is computed there."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if flat.device.type == "cpu":
        return hashlib.sha256(flat.numpy().data).hexdigest()
    return str(weighted_sum(flat))


def weighted_sum(flat: torch.Tensor) -> int:
    """A sum of bytes [n], weighted by position, modulo 2^64."""
    words = torch.nn.functional.pad(flat, (0, -flat.numel() % 4)).view(torch.int32)
    weights = torch.arange(1, min(CHUNK, words.numel()) + 1, device=words.device) * 0x2545F491 + 0x9E3779B1
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for chunk in words.split(CHUNK):
        total = total * 31 + (chunk.long() * weights[: chunk.numel()]).sum()
    return int(total)
