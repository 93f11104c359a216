"""Ledgers of decoding rounds, written by hand or random, counted in plain Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument
from qwenlab.testing.traces import EOS, made_trace

_NONE = -1


@dataclass(frozen=True)
class Played:
    """One round of speculative decoding: its drafts, and the target model's tokens at the same places.

    drafts                     draft tokens that the target model verifies
    target                     the target model's token at each of these places, and the one after the last draft
    proposed                   number of draft steps of the head; by default the number of drafts
    allowed                    maximum number of tokens to emit; None: no limit
    probability, main          of each draft: its probability under the head, and under the target model
    entropy                    of each draft: entropy of the target model's distribution [nat]
    """

    drafts: Sequence[int]
    target: Sequence[int]
    prompt: int = 0
    label: str = "text"
    proposed: int | None = None
    allowed: int | None = None
    probability: Sequence[float] = ()
    main: Sequence[float] = ()
    entropy: Sequence[float] = ()

    def counted(self, eos: Collection[int]) -> dict[str, Any]:
        """Count the round as docs/glossary.md defines it. Raises BadArgument if `target` is too short."""
        drafts, target = list(self.drafts), list(self.target)
        if len(target) < len(drafts) + 1:
            raise BadArgument(f"{len(drafts)} drafts need {len(drafts) + 1} tokens of the target model, not {target}.")
        agreed = next((place for place in range(len(drafts)) if drafts[place] != target[place]), len(drafts))
        emitted = [*drafts[:agreed], target[agreed]]
        end = next((place for place, token in enumerate(emitted) if token in eos), len(emitted))
        emitted = emitted[: end + 1][: self.allowed]
        cut = len(emitted) <= agreed
        accepted = min(agreed, len(emitted))
        ended = "full" if accepted == len(drafts) else "rejected"
        ended = "length" if self.allowed is not None and len(emitted) == self.allowed else ended
        return {
            "proposed": len(drafts) if self.proposed is None else self.proposed,
            "drafted": len(drafts),
            "tested": accepted if cut else min(accepted + 1, len(drafts)),
            "accepted": accepted,
            "agreed": agreed,
            "emitted": len(emitted),
            "next_token": _NONE if cut else target[agreed],
            "ended": "eos" if emitted[-1] in eos else ended,
        }


def ledger(
    rounds: Sequence[Played], *, depth: int | None = None, eos: Collection[int] = (EOS,), prefix: int = 9, **attrs: Any
) -> xr.Dataset:
    """Build a ledger (node "rounds" of a Recording) from rounds, those of each prompt in their order.

    depth   largest number of drafts in a round; by default that of the longest round, at least 1
    eos     tokens that end a text
    prefix  number of tokens of each prompt before its first round
    attrs   attributes of the Dataset, such as rule, origin, seconds; with origin="replay" `agreed` is not known (-1)
    """
    depth = max([1, *(len(played.drafts) for played in rounds)]) if depth is None else depth
    about: dict[str, Any] = dict(rule="greedy", policy="fixed", temperature=0.0, drafting="greedy", origin="online")
    about |= {"text": "own", "rollback": "none", "depth": depth} | attrs
    numbers, begins = Counter[int](), Counter[int]()
    rows = []
    for played in rounds:
        row: dict[str, Any] = {"prompt": played.prompt, "label": played.label, "number": numbers[played.prompt]}
        row |= {"begin": prefix + begins[played.prompt]} | played.counted(eos)
        row["agreed"] = _NONE if about["origin"] == "replay" else row["agreed"]
        numbers[played.prompt] += 1
        begins[played.prompt] += row["emitted"]
        rows.append(row)
    texts = ("label", "ended")
    names = ("prompt", "label", "number", "begin", *Played((), (0,)).counted(()))
    data: dict[str, Any] = {
        name: ("round", np.array([row[name] for row in rows], object if name in texts else np.int64)) for name in names
    }
    data |= {name: (("round", "draft"), values) for name, values in _by_draft(rounds, rows, depth).items()}
    return xr.Dataset(data, {"draft": np.arange(1, depth + 1)}, about)


def _by_draft(rounds: Sequence[Played], rows: Sequence[dict[str, Any]], depth: int) -> dict[str, np.ndarray]:
    """Tokens, probabilities and entropies [round, draft]; those of the target model only for tested drafts."""
    fills = {"draft_token": _NONE, "draft_probability": np.nan, "target_token": _NONE}
    fills |= {"target_probability": np.nan, "target_entropy": np.nan}
    out = {name: np.full((len(rounds), depth), fill) for name, fill in fills.items()}
    for place, (played, row) in enumerate(zip(rounds, rows, strict=True)):
        drafted, tested = row["drafted"], row["tested"]
        out["draft_token"][place, :drafted] = played.drafts
        out["draft_probability"][place, :drafted] = list(played.probability)[:drafted] or 0.5
        out["target_token"][place, :tested] = list(played.target)[:tested]
        out["target_probability"][place, :tested] = list(played.main)[:tested] or 0.5
        out["target_entropy"][place, :tested] = list(played.entropy)[:tested] or 1.0
    return out


def replayed(
    trace: xr.Dataset, *, depth: int | None = None, keep: Callable[[Sequence[float]], bool] | None = None, **attrs: Any
) -> xr.Dataset:
    """Replay greedy decoding over the texts of a trace, round by round: a slow, simple reference.

    keep   called before each draft with the probabilities of the round's drafts so far; False ends the drafting
    attrs  attributes of the ledger
    """
    depth = int(trace.attrs["depth"]) if depth is None else depth
    rounds = []
    for text in range(trace.sizes["text"]):
        rows = trace.isel(token=trace["text"].values == text)
        about = trace.isel(text=text)
        target = rows["target_token"].values.tolist() + [_NONE] * (depth + 1)
        newest, last = int(about["begin"]), int(about["length"]) - 1
        while newest < last:
            allowed = last - newest if str(about["end"].values) != "eos" else None
            most = depth if allowed is None else min(depth, allowed - 1)
            chain = rows.isel(token=newest)
            probability = chain["draft_probability"].values.tolist()
            drafted = 0
            while drafted < most and (keep is None or keep(probability[:drafted])):
                drafted += 1
            played = Played(
                chain["draft_token"].values[:drafted].tolist(),
                target[newest : newest + drafted + 1],
                prompt=text,
                label=str(about["label"].values),
                allowed=allowed,
                probability=probability[:drafted],
                main=chain["target_probability"].values[:drafted].tolist(),
                entropy=rows["target_entropy"].values[newest : newest + drafted].tolist(),
            )
            rounds.append(played)
            newest += played.counted((EOS,))["emitted"]
    attrs = {"origin": "replay", "text": trace.attrs["text"]} | attrs
    return ledger(rounds, depth=depth, prefix=int(trace["begin"][0]) + 1, **attrs)


def made_ledger(*, depth: int = 4, **planted: Any) -> xr.Dataset:
    """A random ledger (node "rounds"), replayed from a random trace. The arguments are those of `made_trace`."""
    return replayed(made_trace(depth=depth, **planted), depth=depth, origin="online")
