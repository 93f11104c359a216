"""An MTP head tried under a contract, text by text: how often its drafts are the main model's; and chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.speculative.audit.contract import FIRST_ROW, Contract, TargetStates, drafts_under, head_under, with_tensors
from qwenlab.speculative.draft_chains import Step

COLUMNS = ("drafts", "agreement", "shared_probability")
"""What is added up of each text and draft: drafts compared, and of these sums of what `Trials.under` says."""


@dataclass(frozen=True)
class Trials:
    """Some texts, as the trunk has read them, and a head that drafts along them.

    factors  what "scaled like the trunk" multiplies each matrix by
    seed     of what the controls draw
    bar      moved by one for each text
    """

    head: MtpHead
    texts: Sequence[TargetStates]
    factors: dict[str, float]
    seed: int
    bar: Any

    def under(self, contract: Contract, *, depth: int) -> np.ndarray:
        """Sums [text, draft, column] of the head's drafts under a contract.

        Draft 1 is compared in every place from `FIRST_ROW` on, draft k where all before it agreed and the text goes on
        with them: elsewhere the main model's choice is for other words. Agreement counts the drafts that are the main
        model's argmax; shared_probability adds up, for each draft, sum over tokens of min(p, q) of both distributions.
        """
        head = head_under(contract, self.head, self.factors)
        return self._each(lambda text: _tally(drafts_under(contract, head, text, depth=depth), self.head, text, depth))

    def controls(self, contract: Contract) -> dict[str, np.ndarray]:
        """The same of draft 1, sums [text, 1, column], with the link between draft and target cut in several ways.

        commonest token  the main model's commonest argmax in every place: chance (without a shared probability)
        shuffled hidden  the head is given the text's hidden states in random order
        shifted target   its drafts are compared half a text further on
        random head      a head of the same shape, drawn at random
        """
        head, rng = head_under(contract, self.head, self.factors), np.random.default_rng(self.seed)
        random = random_head(self.head, self.seed)

        def shuffled(text: TargetStates) -> np.ndarray:
            order = torch.from_numpy(rng.permutation(len(text.tokens))).to(text.tokens.device)
            fed = replace(text, after=text.after[order], before=text.before[order])
            return _tally(drafts_under(contract, head, fed, depth=1), self.head, text, 1)

        def shifted(text: TargetStates) -> np.ndarray:
            by = len(text.tokens) // 2
            other = replace(text, after=text.after.roll(by, dims=0), target=text.target.roll(by, dims=0))
            return _tally(drafts_under(contract, head, text, depth=1), self.head, other, 1)

        def drawn(text: TargetStates) -> np.ndarray:
            return _tally(drafts_under(contract, random, text, depth=1), self.head, text, 1)

        ways = {"shuffled hidden": shuffled, "shifted target": shifted, "random head": drawn}
        return {"commonest token": _commonest(self.texts)} | {name: self._each(way) for name, way in ways.items()}

    def _each(self, tally: Callable[[TargetStates], np.ndarray]) -> np.ndarray:
        found = []
        for text in self.texts:
            found.append(tally(text))
            self.bar.update()
        return np.stack(found)


def random_head(head: MtpHead, seed: int) -> MtpHead:
    """A head of the same shape on the same trunk: norms of scale 1, matrices as the config says new ones are drawn."""
    device = head.fc.weight.device
    generator, std = torch.Generator(device).manual_seed(seed), float(head.config.initializer_range)
    drawn = {
        name: torch.zeros_like(weight)
        if weight.ndim == 1
        else torch.empty_like(weight).normal_(std=std, generator=generator)
        for name, weight in head.named_parameters()
    }
    return with_tensors(head, drawn)


@torch.no_grad()
def _tally(steps: Iterator[Step], head: MtpHead, text: TargetStates, depth: int) -> np.ndarray:
    """Sums [draft, column] over the places of a text; `head` gives the logits of the main model's hidden states."""
    length, sums = len(text.tokens), np.zeros((depth, len(COLUMNS)))
    follows = text.target == text.tokens.roll(-1)  # the text goes on with the main model's choice
    going = torch.arange(length, device=text.tokens.device) >= FIRST_ROW
    for step in steps:
        rows = torch.arange(step.rows.start, step.rows.stop, device=text.tokens.device)
        place = rows + step.draft - 1  # having read which the main model has a choice for the draft's place
        asked = going[rows] & (place < length)
        going[rows] = False
        if not asked.any():
            continue
        rows, place = rows[asked], place[asked]
        agreed = step.tokens[asked] == text.target[place]
        going[rows] = agreed & follows[place]
        given = head.logits(text.after[place])
        shared = torch.minimum(given.float().softmax(dim=-1), step.logits[asked].float().softmax(dim=-1)).sum()
        sums[step.draft - 1] += len(rows), int(agreed.sum()), float(shared)
    return sums


def _commonest(texts: Sequence[TargetStates]) -> np.ndarray:
    """Sums [text, 1, column] of a draft that is the commonest argmax everywhere."""
    targets = [text.target[FIRST_ROW:] for text in texts]
    token = torch.cat(targets).mode().values
    return np.array([[[len(each), int((each == token).sum()), np.nan]] for each in targets])
