"""Greedy rules for `evidence.lossless`: one records near misses, one emits one of them in place of the best token."""

from __future__ import annotations

from typing import NamedTuple

import torch

from qwenlab.speculative.verification import Greedy, Verification

AIM, WITHIN = 0.5, 0.05
"""Loss [nat] of a planted token, and how far from it counts as that loss."""


class NearMiss(NamedTuple):
    """A token that is not the best, and how much less likely it is [nat]."""

    token: int
    loss: float

    @property
    def on_aim(self) -> bool:
        """Whether the loss is 0.45 to 0.55 nat."""
        return abs(self.loss - AIM) <= WITHIN


def near_miss(scores: torch.Tensor) -> NearMiss:
    """The token nearest to 0.5 nat below the best, by scores, float [vocabulary]."""
    losses = (scores.max() - scores).double()
    token = int((losses - AIM).abs().argmin())
    return NearMiss(token, float(losses[token]))


class Recorded(Greedy):
    """Greedy, unchanged; `near_misses` has one for each call: the prompt's, then each round's."""

    def __init__(self) -> None:
        self.near_misses: list[NearMiss] = []

    def verify(
        self, drafts: torch.Tensor, proposal: torch.Tensor | None, scores: torch.Tensor, generator: torch.Generator
    ) -> Verification:
        verdict = super().verify(drafts, proposal, scores, generator)
        self.near_misses.append(near_miss(scores[verdict.accepted]))
        return verdict


class Planted(Greedy):
    """Greedy, but in one round (0: the first) the token after the accepted drafts is a near miss, kept as `planted`."""

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
