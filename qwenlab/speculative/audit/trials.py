"""`Trials`: run an MTP head under a contract on each text, and count how often its drafts agree; with controls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.speculative.audit.contract import (
    FIRST_ROW,
    Contract,
    TargetStates,
    adapt_head,
    draft_with,
    with_parameters,
)
from qwenlab.speculative.draft_chains import Step


@dataclass(frozen=True)
class Trials:
    """A head that drafts along texts that the target model has read; `factors` are those of `scale_factors`."""

    head: MtpHead
    texts: Sequence[TargetStates]
    factors: dict[str, float]
    seed: int
    bar: Any

    def run(self, contract: Contract, *, depth: int) -> np.ndarray:
        """Sums [text, draft, column] of the head's drafts under a contract.

        Draft 1 is compared at every place from `FIRST_ROW` on; draft k where all drafts before it agreed and the text
        continues with them. The columns are the number of drafts, the number that are the target model's argmax, and
        the sum over drafts and tokens of min(p, q) of both distributions.
        """
        return self._sums(contract, adapt_head(contract, self.head, self.factors), depth=depth)

    def controls(self, contract: Contract) -> dict[str, np.ndarray]:
        """Sums of draft 1, [text, 1, column], with the link between draft and target cut in several ways.

        commonest token  every draft is the target model's commonest argmax: chance (no shared probability)
        shuffled hidden  the head reads the text's hidden states in random order
        shifted target   the drafts are compared half a text further on
        random head      a head of the same shape with random weights
        """
        head, rng = adapt_head(contract, self.head, self.factors), np.random.default_rng(self.seed)

        def shuffled(text: TargetStates) -> TargetStates:
            order = torch.from_numpy(rng.permutation(len(text.tokens))).to(text.tokens.device)
            return replace(text, after=text.after[order], before=text.before[order])

        def shifted(text: TargetStates) -> TargetStates:
            by = len(text.tokens) // 2
            return replace(text, after=text.after.roll(by, dims=0), target=text.target.roll(by, dims=0))

        return {
            "commonest token": _commonest(self.texts),
            "shuffled hidden": self._sums(contract, head, read=map(shuffled, self.texts)),
            "shifted target": self._sums(contract, head, compared=map(shifted, self.texts)),
            "random head": self._sums(contract, random_head(self.head, self.seed)),
        }

    def _sums(
        self,
        contract: Contract,
        head: MtpHead,
        *,
        depth: int = 1,
        read: Iterable[TargetStates] | None = None,
        compared: Iterable[TargetStates] | None = None,
    ) -> np.ndarray:
        """Sums [text, draft, column] of drafts along the texts that are read, compared with those to compare."""
        sums = []
        for text, other in zip(read or self.texts, compared or self.texts, strict=True):
            sums.append(_tally(draft_with(contract, head, text, depth=depth), self.head, other, depth))
            self.bar.update()
        return np.stack(sums)


def random_head(head: MtpHead, seed: int) -> MtpHead:
    """A random head of the same shape on the same target model: norms of scale 1, matrices with the config's std."""
    device = head.fc.weight.device
    generator, std = torch.Generator(device).manual_seed(seed), float(head.config.initializer_range)
    drawn = {name: torch.zeros_like(weight) for name, weight in head.named_parameters()}
    for weight in drawn.values():
        if weight.ndim > 1:
            weight.normal_(std=std, generator=generator)
    return with_parameters(head, drawn)


@torch.no_grad()
def _tally(steps: Iterator[Step], head: MtpHead, text: TargetStates, depth: int) -> np.ndarray:
    """Sums [draft, column] over the places of a text; `head` gives the logits of the target model's hidden states."""
    length, sums = len(text.tokens), np.zeros((depth, 3))
    follows = text.target == text.tokens.roll(-1)  # the text continues with the target model's choice
    going = torch.arange(length, device=text.tokens.device) >= FIRST_ROW
    for step in steps:
        rows = torch.arange(step.rows.start, step.rows.stop, device=text.tokens.device)
        place = rows + step.draft - 1  # after this token the target model chooses the token of the draft's place
        compared = going[rows] & (place < length)
        going[rows] = False
        if not compared.any():
            continue
        rows, place = rows[compared], place[compared]
        agreed = step.tokens[compared] == text.target[place]
        going[rows] = agreed & follows[place]
        target = head.logits(text.after[place])
        shared = torch.minimum(target.float().softmax(dim=-1), step.logits[compared].float().softmax(dim=-1)).sum()
        sums[step.draft - 1] += len(rows), int(agreed.sum()), float(shared)
    return sums


def _commonest(texts: Sequence[TargetStates]) -> np.ndarray:
    """Sums [text, 1, column] if every draft is the commonest argmax."""
    targets = [text.target[FIRST_ROW:] for text in texts]
    token = torch.cat(targets).mode().values
    return np.array([[[len(target), int((target == token).sum()), np.nan]] for target in targets])
