"""Random numbers per token: they do not depend on how a text is split into passes, nor use torch's generators."""

from __future__ import annotations

import math
import zlib

import torch

from qwenlab.capture.tokens import TokenBatch

# Increment and factors of SplitMix64 (Steele, Lea & Flood 2014), as signed integers, which torch has.
_GOLDEN, _FIRST, _SECOND = (
    constant - 2**64 for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def uniform(name: str, seed: int, tokens: TokenBatch, *shape: int) -> torch.Tensor:
    """Uniform in (0, 1), float64 [batch, position, *shape]: by name, seed, and the token's sequence and position.

    The same text read a second time in a block is another sequence, and gets other numbers.
    """
    device = tokens.position.device
    sequence = torch.tensor(list(tokens.numbers), device=device)[:, None]
    start = torch.tensor(zlib.crc32(f"{name} {seed}".encode()), device=device)
    token = _mixed(_mixed(_mixed(start) + sequence) + tokens.position)
    cell = torch.arange(math.prod(shape), device=device).reshape(shape)
    bits = _mixed(token.reshape(*token.shape, *[1] * len(shape)) + _mixed(cell))
    return (_shifted(bits, 11).double() + 0.5) / 2**53


def gaussian(name: str, seed: int, tokens: TokenBatch, *shape: int) -> torch.Tensor:
    """The same from a normal distribution of variance 1."""
    return torch.special.ndtri(uniform(name, seed, tokens, *shape))


def _mixed(bits: torch.Tensor) -> torch.Tensor:
    """Mix the 64 bits of each number, one to one."""
    bits = bits + _GOLDEN
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def _shifted(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Shift right, filling with zeros."""
    return (bits >> by) & (2 ** (64 - by) - 1)
