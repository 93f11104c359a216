"""`Round`, one draft-and-verify step, and the ledger: a Dataset with one row per round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr

from qwenlab.stats.base.variables import variable

Ended = Literal["rejected", "full", "eos", "length"]

NONE = -1
"""Value of a token or count that does not exist or is not known."""


@dataclass
class Round:
    """One draft-and-verify step of one text.

    begin          tokens known before the round, with the prompt: the place of its first draft
    proposed       drafts that the draft head made;  drafted: those that the target model verified
    tested         drafts whose predecessors were all accepted;  accepted: drafts accepted
    agreed         drafts accepted before an end of text truncated them; NONE if not known
    emitted        tokens added to the text: the accepted drafts and the token that the target model adds
    next_token     the token that the target model adds; NONE if an end of text came before it
    ended          why the round ended: "rejected", "full" (all drafts accepted), "eos", "length"
    seconds        from the first draft to the end of the rollback

    Per draft: its token and its probability under the draft head. Per tested draft: the target model's token for its
    place, the draft's probability under the target model, and that model's entropy [nat]. All at temperature 1.
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
        """The emitted tokens."""
        return [*self.draft_token[: self.accepted], *([] if self.next_token == NONE else [self.next_token])]


_BY_ROUND: dict[str, tuple[type, str, str]] = {
    "prompt": (np.int64, "1", "number of the text"),
    "label": (str, "", "label of the text"),
    "number": (np.int64, "1", "number of the round in the text"),
    "begin": (np.int64, "token", "tokens known before the round"),
    "proposed": (np.int64, "token", "drafts that the draft head made"),
    "drafted": (np.int64, "token", "drafts that the target model verified"),
    "tested": (np.int64, "token", "drafts whose predecessors were all accepted"),
    "accepted": (np.int64, "token", "drafts accepted"),
    "agreed": (np.int64, "token", "drafts accepted before an end of text truncated them"),
    "emitted": (np.int64, "token", "tokens emitted"),
    "next_token": (np.int64, "id", "the token that the target model added"),
    "ended": (str, "", "why the round ended"),
    "seconds": (np.float64, "s", "time taken"),
}
_BY_DRAFT: dict[str, tuple[type, str, str]] = {
    "draft_token": (np.int64, "id", "the draft"),
    "draft_probability": (np.float64, "1", "probability of the draft under the draft head"),
    "target_token": (np.int64, "id", "the target model's token for the draft's place"),
    "target_probability": (np.float64, "1", "probability of the draft under the target model"),
    "target_entropy": (np.float64, "nat", "entropy of the target model's distribution for the draft's place"),
}


def ledger(
    rounds: Sequence[Sequence[Round]], *, depth: int, labels: Sequence[str], attrs: Mapping[str, Any]
) -> xr.Dataset:
    """Rounds as a Dataset: counts [round], tokens and probabilities [round, draft].

    rounds  the rounds of each text, in order;  labels: label of each text
    depth   maximum drafts per round: the length of the dim `draft`
    attrs   conditions under which the rounds were run: rule, depth, policy, ...
    """
    flat = [(text, number, item) for text, items in enumerate(rounds) for number, item in enumerate(items)]
    columns: dict[str, Any] = {"prompt": [text for text, _, _ in flat], "number": [number for _, number, _ in flat]}
    columns["label"] = [labels[text] for text in columns["prompt"]]
    for name in _BY_ROUND.keys() - columns.keys():
        columns[name] = [getattr(item, name) for _, _, item in flat]
    for name, (kind, _, _) in _BY_DRAFT.items():
        columns[name] = np.full((len(flat), depth), NONE if kind is np.int64 else np.nan, dtype=kind)
        for row, (_, _, item) in zip(columns[name], flat, strict=True):
            values = getattr(item, name)
            row[: len(values)] = values
    return ledger_from_columns(columns, attrs)


def ledger_from_columns(columns: Mapping[str, Any], attrs: Mapping[str, Any]) -> xr.Dataset:
    """A ledger from the values of all its variables, [round] or [round, draft]."""
    data = {}
    for name, (kind, units, meaning) in (_BY_ROUND | _BY_DRAFT).items():
        values: np.ndarray = np.asarray(columns[name], dtype=kind)
        data[name] = variable(values, ("round", "draft")[: values.ndim], units, meaning)
    return xr.Dataset(data, draft_coordinate(data["draft_token"].shape[1]), dict(attrs))


def draft_coordinate(depth: int) -> dict[str, xr.DataArray]:
    """The coordinate `draft` of ledgers and traces: 1 to `depth`."""
    return {"draft": variable(np.arange(1, depth + 1), ["draft"], "1", "place of a draft in its round")}
