"""`check_lossless`: is text that was drafted, verified and rolled back the text that plain decoding writes?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.checkpoint.open import Checkpoint, require_checkpoint
from qwenlab.errors import BadArgument
from qwenlab.speculative.decoding import Decoding, Settings
from qwenlab.speculative.lossless.noise import PositionNoise, WideReadings, pooled
from qwenlab.speculative.lossless.report import Fault, LosslessReport, LosslessVerdict, variable
from qwenlab.speculative.lossless.witness import COMPONENTS, PlainReading, gaps, held
from qwenlab.speculative.policies import Policy
from qwenlab.speculative.prompts import Prompt, checked_depth, context_of, encoded, end_tokens_of
from qwenlab.speculative.rollback import ReplayRollback, Rollback
from qwenlab.speculative.verification import VerificationRule, rule_of

MARGIN = 10.0
"""Allowed error of a state, in multiples of its noise floor. It does not apply to tokens."""

TOKEN_MARGIN = 2.0
"""Allowed regret of a token, in multiples of the noise at its position."""


def check_lossless(
    checkpoint: Checkpoint,
    prompts: Prompt | Sequence[Prompt],
    *,
    depth: int,
    max_new_tokens: int = 64,
    rule: str | VerificationRule = "greedy",
    policy: Policy | None = None,
    rollback: type[Rollback] | Rollback = ReplayRollback,
    progress: bool = True,
) -> LosslessReport:
    """Decode with drafts, and compare every token, and every state after every round, with plain decoding.

    The witness reads the emitted tokens one by one and never speculates. Kernels of other widths round differently, so
    its states and logits differ a little from those of correct drafted decoding. That noise is measured on the same
    texts: they are read in blocks of depth + 1 tokens, depth + 1 times with blocks that start at other tokens, and
    nothing is rolled back. No logit of the checked decoding is used for it.

    States: an error of `MARGIN` (10) times the noise floor is allowed. The floor is the largest error of the first of
    these readings, and at least the `eps` of the model's dtype.

    Tokens: a regret, ln p(best) - ln p(token) by the witness, of `TOKEN_MARGIN` (2) times the noise at the token's
    position is allowed. The noise is the largest of three numbers [nat]: the largest change, in any reading in blocks,
    of the gap between the best token and one that competes with it (at most `COMPETING`, 1 nat, below the best); the
    0.99 quantile of these changes over all positions of all texts; and the spacing of two neighbouring logits in the
    model's dtype. The result has the largest regret allowed anywhere as `detectable`.

    A fault of the model's own that every reading in blocks shares raises the noise: it shows as a large `detectable`.

    rule      one that takes the argmax: "greedy", or a `VerificationRule` of your own with `samples = False`
    rollback  the class to check; any object with that interface will do

    Raises NoMtpHead, BadPrompt, BadArgument.
    """
    require_checkpoint(checkpoint)
    head = checkpoint.require_mtp()
    judge = rule_of(rule, 0.0)
    room = context_of(checkpoint)
    settings = Settings(checked_depth(depth, room), judge, policy, end_tokens=end_tokens_of(checkpoint))
    rows: list[dict[str, Any]] = []
    floor: dict[str, float] = dict.fromkeys((*COMPONENTS, "verdict rule"), 0.0)
    for text, prompt in enumerate(tqdm(encoded(checkpoint, prompts, max_new_tokens), disable=not progress)):
        own = rollback() if isinstance(rollback, type) else rollback
        generator = torch.Generator(prompt.device)
        decoding = Decoding(head, prompt, settings, own, max_new_tokens=max_new_tokens, generator=generator)
        found, states = _compared(decoding, prompt, text)
        rows += found
        floor = {name: max(value, states.get(name, 0.0)) for name, value in floor.items()}
    if not rows:
        raise BadArgument("No round was run: every text ended with its first token.\nGive longer max_new_tokens.")
    floor["verdict rule"] = pooled([noise for row in rows for noise in row["noise"]])
    bounds = [[_allowed_regret(noise, floor["verdict rule"]) for noise in row["noise"]] for row in rows]
    allowed = _allowed(checkpoint, floor)
    return _judged(rows, floor, allowed, bounds, {"rule": judge.name, "depth": depth, "rollback": own.name})


@torch.no_grad()
def _compared(decoding: Decoding, prompt: torch.Tensor, text: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Decode a text, its witness one token behind: a row for each round, and the noise floor of the states."""
    head, width = decoding.drafter.head, decoding.settings.depth + 1
    witness = PlainReading(head, prompt)
    readings = WideReadings(witness, prompt, width)
    decoding.start()
    rows: list[dict[str, Any]] = []
    regrets, noise, pairs = [_regret(witness.logits[-1], decoding.tokens[-1])], [readings.newest], 0
    while not decoding.ended:
        made = decoding.step()
        for token in decoding.tokens[made.begin - 1 :][: made.emitted]:
            read = torch.tensor([token], device=decoding.context.device)
            witness.read(read)
            readings.follow(read)
            regrets.append(_regret(witness.logits[-1], decoding.tokens[witness.context.position]))
            noise.append(readings.newest)
        pairs = made.begin - 1 if made.proposed else pairs
        state = (decoding.context, decoding.drafter.cache, witness, pairs)
        rows.append(
            {
                "text": text,
                "round": len(rows),
                "accepted": made.accepted,
                "layers": gaps(*state),
                "excess": held(*state),
                "regrets": regrets,
                "noise": noise,
            }
        )
        regrets, noise = [], []
    readings.finish()
    return rows, readings.states


def _allowed(checkpoint: Checkpoint, floor: dict[str, float]) -> dict[str, float]:
    """The errors of states that numerics explain. A text of a few tokens can have a floor of 0, so eps is the least."""
    eps = torch.finfo(checkpoint.model.dtype).eps
    return {name: 0.0 if name == "position" else MARGIN * max(floor[name], eps) for name in COMPONENTS}


def _allowed_regret(noise: PositionNoise, least: float) -> float:
    """The regret [nat] that numerics explain at a position, where noise is at least `least` [nat]."""
    return TOKEN_MARGIN * max(noise.largest, noise.step, least)


def _regret(logits: torch.Tensor, token: int) -> float:
    """ln p(best) - ln p(token)."""
    return float(logits.max() - logits[token])


def _judged(
    rows: list[dict[str, Any]],
    floor: dict[str, float],
    allowed: dict[str, float],
    bounds: list[list[float]],
    attrs: dict[str, Any],
) -> LosslessReport:
    """The verdict on these rounds.

    allowed  by component of the state, its allowed error
    bounds   by round, the allowed regret of each of its tokens [nat]
    """
    faults = (_fault(row, own, allowed) for row, own in zip(rows, bounds, strict=True))
    fault = next((found for found in faults if found is not None), None)
    regrets = [regret for row in rows for regret in row["regrets"]]
    differing = sum(regret > 0 for regret in regrets)
    data: dict[str, Any] = {
        name: ("round", np.array([row[key] for row in rows]), {"units": "1", "long_name": meaning})
        for name, key, meaning in (
            ("text", "text", "number of the text"),
            ("number", "round", "number of the round in it"),
            ("accepted", "accepted", "drafts accepted"),
        )
    }
    for name in COMPONENTS:
        values = np.array([np.max([*row["layers"][name].values()]) for row in rows])
        data[variable(name)] = ("round", values, {"units": "1", "long_name": f"relative error, {name}"})
    worst = np.array([max(row["regrets"], default=0.0) for row in rows])
    data["regret"] = ("round", worst, {"units": "nat", "long_name": "largest regret of a token"})
    widest = np.array([max(own, default=0.0) for own in bounds])
    data["allowed_regret"] = ("round", widest, {"units": "nat", "long_name": "largest allowed regret of a token"})
    verdict: LosslessVerdict = "NOT lossless" if fault else "lossless up to numerics" if differing else "lossless"
    detectable = float(widest.max())
    return LosslessReport(verdict, fault, xr.Dataset(data, attrs=attrs), floor, differing, len(regrets), detectable)


def _fault(row: dict[str, Any], bounds: list[float], allowed: dict[str, float]) -> Fault | None:
    """What is beyond numerics in a round: its tokens first, which the states before it decided."""
    beyond = [(regret, bound) for regret, bound in zip(row["regrets"], bounds, strict=True) if not regret <= bound]
    regret, bound = max(beyond, default=(0.0, 0.0))
    layers, allowed = {"verdict rule": {0: regret}, **row["layers"]}, allowed | {"verdict rule": bound}
    found = {name: float(np.max([*errors.values()])) for name, errors in layers.items()}
    bad = {name: error for name, error in found.items() if not error <= allowed[name]}  # NaN is beyond all bounds
    if not bad:
        return None
    first = next(iter(bad))
    layer = next(layer for layer, error in layers[first].items() if not error <= allowed[first])
    return Fault(row["text"], row["round"], bad, allowed, row["excess"], layer)
