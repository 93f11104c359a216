"""Random numbers by token: the same ones however its text is fed, and torch's own generators are left alone."""

from __future__ import annotations

import math
import zlib

import torch

from qwenlab.capture.tokens import TokenBatch

# Increment and factors of SplitMix64 (Steele, Lea & Flood 2014), as the signed numbers that torch has.
_GOLDEN, _FIRST, _SECOND = (each - 2**64 for each in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def uniform(name: str, seed: int, reading: TokenBatch, *shape: int) -> torch.Tensor:
    """Uniform in (0, 1), float64 [batch, position, *shape]: by site, seed, number and position of the sequence's token.

    The same text read a second time in a block is another sequence, and is given other numbers.
    """
    device = reading.position.device
    sequence = torch.tensor(list(reading.numbers), device=device)[:, None]
    start = torch.tensor(zlib.crc32(f"{name} {seed}".encode()), device=device)
    token = _mixed(_mixed(_mixed(start) + sequence) + reading.position)
    cell = torch.arange(math.prod(shape), device=device).reshape(shape)
    bits = _mixed(token.reshape(*token.shape, *[1] * len(shape)) + _mixed(cell))
    return (_shifted(bits, 11).double() + 0.5) / 2**53


def gaussian(name: str, seed: int, reading: TokenBatch, *shape: int) -> torch.Tensor:
    """The same from a normal distribution of variance 1."""
    return torch.special.ndtri(uniform(name, seed, reading, *shape))


def _mixed(bits: torch.Tensor) -> torch.Tensor:
    """Each number's 64 bits stirred, one to one."""
    bits = bits + _GOLDEN
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def _shifted(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Shifted to the right, with zeros behind."""
    return (bits >> by) & (2 ** (64 - by) - 1)
