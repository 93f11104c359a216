"""`Round`: one draft-and-verify step; and the ledger of many, as a Dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr

Ended = Literal["rejected", "full", "eos", "length"]

NONE = -1
"""In the place of a token or a count that there is none of, or that is not known."""


@dataclass
class Round:
    """One draft-and-verify step of one text.

    begin          tokens known before it, the prompt's included: the place of its first draft
    proposed       drafts the head made;  drafted: those given to the main model
    tested         drafts whose predecessors were all accepted;  accepted: those accepted
    agreed         accepted before an end of text cut them; NONE where that is not known
    emitted        tokens the text grew by: those accepted, and the one that the main model adds
    next_token     that one; NONE where an end of text came before it
    ended          why it ended: "rejected", "full" (all drafts accepted), "eos", "length"
    seconds        from the first draft to the cache rolled back

    By draft: its token, its probability by the head; and for those tested the token that the main model has there, the
    probability it gives the draft, and the entropy of its distribution [nat]; all at temperature 1.
    """

    begin: int
    proposed: int
    drafted: int
    tested: int
    accepted: int
    agreed: int
    emitted: int
    next_token: int
    ended: Ended
    draft_token: Sequence[int] = ()
    draft_probability: Sequence[float] = ()
    target_token: Sequence[int] = ()
    target_probability: Sequence[float] = ()
    target_entropy: Sequence[float] = ()
    seconds: float = field(default=float("nan"), compare=False)

    @property
    def tokens(self) -> list[int]:
        """The tokens emitted."""
        return [*self.draft_token[: self.accepted], *([] if self.next_token == NONE else [self.next_token])]


_BY_ROUND: dict[str, tuple[type, str, str]] = {
    "prompt": (np.int64, "1", "number of the text"),
    "label": (str, "", "label of the text"),
    "number": (np.int64, "1", "number of the round in it"),
    "begin": (np.int64, "token", "tokens known before the round"),
    "proposed": (np.int64, "token", "drafts that the head made"),
    "drafted": (np.int64, "token", "drafts given to the main model"),
    "tested": (np.int64, "token", "drafts whose predecessors were all accepted"),
    "accepted": (np.int64, "token", "drafts accepted"),
    "agreed": (np.int64, "token", "drafts accepted before an end of text cut them"),
    "emitted": (np.int64, "token", "tokens emitted"),
    "next_token": (np.int64, "id", "the token that the main model added"),
    "ended": (str, "", "why it ended"),
    "seconds": (np.float64, "s", "time taken"),
}
_BY_DRAFT: dict[str, tuple[type, str, str]] = {
    "draft_token": (np.int64, "id", "the draft"),
    "draft_probability": (np.float64, "1", "probability of the draft by the head"),
    "target_token": (np.int64, "id", "what the main model has in its place"),
    "target_probability": (np.float64, "1", "probability of the draft by the main model"),
    "target_entropy": (np.float64, "nat", "entropy of the main model's distribution there"),
}


def ledger(
    rounds: Sequence[Sequence[Round]], *, depth: int, labels: Sequence[str], attrs: Mapping[str, Any]
) -> xr.Dataset:
    """The rounds of some texts as a Dataset: counts by round, tokens and probabilities by round and draft.

    rounds  of each text, in order
    depth   drafts a round may have: the length of the dim `draft`
    labels  what each text is called
    attrs   under what they were made: rule, depth, policy, ...
    """
    flat = [(text, number, each) for text, made in enumerate(rounds) for number, each in enumerate(made)]
    columns: dict[str, Any] = {
        "prompt": [text for text, _, _ in flat],
        "label": [labels[text] for text, _, _ in flat],
        "number": [number for _, number, _ in flat],
    }
    for name in _BY_ROUND.keys() - columns.keys():
        columns[name] = [getattr(each, name) for _, _, each in flat]
    for name, (kind, _, _) in _BY_DRAFT.items():
        columns[name] = np.full((len(flat), depth), NONE if kind is np.int64 else np.nan, dtype=kind)
        for row, (_, _, each) in zip(columns[name], flat, strict=True):
            found = getattr(each, name)
            row[: len(found)] = found
    return tabled(columns, attrs)


def tabled(columns: Mapping[str, Any], attrs: Mapping[str, Any]) -> xr.Dataset:
    """A ledger of all its variables by name, [round] or [round, draft]."""
    data: dict[str, Any] = {}
    for name, (kind, units, meaning) in (_BY_ROUND | _BY_DRAFT).items():
        values: np.ndarray = np.asarray(columns[name], dtype=kind)
        data[name] = (("round", "draft")[: values.ndim], values, _said(units, meaning))
    drafts = np.arange(1, columns["draft_token"].shape[1] + 1)
    coords = {"draft": ("draft", drafts, _said("1", "place of a draft in its round"))}
    return xr.Dataset(data, coords, dict(attrs))


def _said(units: str, meaning: str) -> dict[str, str]:
    return {"units": units, "long_name": meaning}
