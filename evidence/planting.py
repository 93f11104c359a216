"""Greedy rules for `evidence.lossless`: one records near misses, one emits a near miss instead of the best token."""

from __future__ import annotations

from typing import NamedTuple

import torch

from qwenlab.speculative.verification import Greedy, Verification

AIM, WITHIN = 0.5, 0.05
"""Target loss [nat] of a planted token, and its tolerance."""


class NearMiss(NamedTuple):
    """A token that is not the best, and its loss: the difference in log probability to the best [nat]."""

    token: int
    loss: float

    @property
    def on_aim(self) -> bool:
        """Whether the loss is 0.45 to 0.55 nat."""
        return abs(self.loss - AIM) <= WITHIN


def near_miss(scores: torch.Tensor) -> NearMiss:
    """The token whose loss is nearest to 0.5 nat, by scores, float [vocabulary]."""
    losses = (scores.max() - scores).double()
    token = int((losses - AIM).abs().argmin())
    return NearMiss(token, float(losses[token]))


class Recorded(Greedy):
    """Greedy, unchanged; `near_misses` has one entry per call: first the prompt, then the rounds."""

    def __init__(self) -> None:
        self.near_misses: list[NearMiss] = []

    def verify(
        self, drafts: torch.Tensor, proposal: torch.Tensor | None, scores: torch.Tensor, generator: torch.Generator
    ) -> Verification:
        verdict = super().verify(drafts, proposal, scores, generator)
        self.near_misses.append(near_miss(scores[verdict.accepted]))
        return verdict


class Planted(Greedy):
    """Greedy, but in round `place` (0: the first) the token after the accepted drafts is a near miss, `planted`."""

    name = "planted"

    def __init__(self, place: int) -> None:
        self.place, self._calls = place, 0
        self.planted: NearMiss | None = None

    def verify(
        self, drafts: torch.Tensor, proposal: torch.Tensor | None, scores: torch.Tensor, generator: torch.Generator
    ) -> Verification:
        verdict = super().verify(drafts, proposal, scores, generator)
        self._calls += 1
        if self._calls != self.place + 2:  # the first call is for the prompt
            return verdict
        self.planted = near_miss(scores[verdict.accepted])
        return Verification(verdict.accepted, self.planted.token)
