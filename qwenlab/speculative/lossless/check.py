"""`check_lossless`: compare speculative decoding with plain decoding, token by token and state by state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.errors import BadArgument
from qwenlab.speculative.decoding_loop import Decoding, Settings
from qwenlab.speculative.lossless.noise import BlockReaders, pooled
from qwenlab.speculative.lossless.reference import COMPONENTS, ReferenceReader, excess_tokens, state_errors
from qwenlab.speculative.lossless.report import Fault, LosslessReport, LosslessVerdict, error_variable
from qwenlab.speculative.policies import Policy
from qwenlab.speculative.prompts import Prompt, drafting_head, encode_prompts, end_tokens_of
from qwenlab.speculative.rollback import ReplayRollback, Rollback
from qwenlab.speculative.verification import VerificationRule, resolve_rule
from qwenlab.stats.base.variables import variable

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

    The reference reads the emitted tokens one by one, without drafts. Kernels of another width round differently. This
    noise is measured by reading the same texts in blocks of depth + 1 tokens, depth + 1 times with blocks that start at
    different tokens, without rollback. No logit of the checked decoding is used for it.

    States: the allowed error is `MARGIN` (10) times the noise floor. The floor is the largest error of the first of
    these readings, and at least the `eps` of the model's dtype.

    Tokens: the allowed regret, ln p(best) - ln p(token) under the reference, is `TOKEN_MARGIN` (2) times the noise at
    the token's position. The noise is the largest of three numbers [nat]: the largest change, in any reading in blocks,
    of the gap between the best token and one that competes with it (at most `COMPETING`, 1 nat, below the best); the
    0.99 quantile of these changes over all positions of all texts; and the spacing of two neighbouring logits in the
    model's dtype. A fault of the model that every reading shares raises the noise, and thus `detectable` in the result.

    rule      a rule that takes the argmax: "greedy", or your own `VerificationRule` with `samples = False`
    rollback  the class to check, or an object of it

    Raises NoMtpHead, BadPrompt, BadArgument and, if the reference's logits are NaN, NonFiniteWeights.
    """
    head = drafting_head(checkpoint, depth)
    rule = resolve_rule(rule, 0.0, where="check_lossless")
    settings = Settings(depth, rule, policy, end_tokens=end_tokens_of(checkpoint))
    rows: list[dict[str, Any]] = []
    floor: dict[str, float] = dict.fromkeys((*COMPONENTS, "verdict rule"), 0.0)
    texts = encode_prompts(checkpoint, prompts, max_new_tokens, where="check_lossless")
    for text, prompt in enumerate(tqdm(texts, desc="checking", unit="text", disable=not progress)):
        decoding = Decoding(head, prompt, settings, rollback, max_new_tokens=max_new_tokens)
        compared, states = _compare(decoding, prompt, text)
        rows += compared
        floor = {name: max(value, states.get(name, 0.0)) for name, value in floor.items()}
    if not rows:
        raise BadArgument("No round was run: every text ended with its first token.\nGive a larger max_new_tokens.")
    floor["verdict rule"] = pooled([noise for row in rows for noise in row["noise"]])
    least, eps = floor["verdict rule"], torch.finfo(checkpoint.model.dtype).eps
    bounds = [[TOKEN_MARGIN * max(noise.largest, noise.step, least) for noise in row["noise"]] for row in rows]
    # The floor of a text of a few tokens can be 0, so it is at least eps.
    allowed = {name: 0.0 if name == "position" else MARGIN * max(floor[name], eps) for name in COMPONENTS}
    return _report(rows, floor, allowed, bounds, {"rule": rule.name, "depth": depth, "rollback": rollback.name})


@torch.no_grad()
def _compare(decoding: Decoding, prompt: torch.Tensor, text: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Decode a text, and its reference one token behind; return a row per round, and the noise floor of the states."""
    head, width = decoding.drafter.head, decoding.settings.depth + 1
    reference = ReferenceReader(head, prompt)
    readings = BlockReaders(reference, prompt, width)
    decoding.start()
    rows: list[dict[str, Any]] = []
    regrets, noise, pairs = [_regret(reference.logits[-1], decoding.tokens[-1])], [readings.newest], 0
    while not decoding.ended:
        step = decoding.step()
        for token in decoding.tokens[step.begin - 1 :][: step.emitted]:
            read = torch.tensor([token], device=decoding.context.device)
            reference.read(read)
            readings.follow(read)
            regrets.append(_regret(reference.logits[-1], decoding.tokens[reference.context.position]))
            noise.append(readings.newest)
        pairs = step.begin - 1 if step.proposed else pairs
        state = (decoding.context, decoding.drafter.cache, reference, pairs)
        row = {"text": text, "round": len(rows), "accepted": step.accepted, "regrets": regrets, "noise": noise}
        rows.append(row | {"layers": state_errors(*state), "excess": excess_tokens(*state)})
        regrets, noise = [], []
    readings.finish()
    return rows, readings.states


def _regret(logits: torch.Tensor, token: int) -> float:
    """ln p(best) - ln p(token)."""
    return float(logits.max() - logits[token])


def _report(
    rows: list[dict[str, Any]],
    floor: dict[str, float],
    allowed: dict[str, float],
    bounds: list[list[float]],
    attrs: dict[str, Any],
) -> LosslessReport:
    """The report; `allowed` is the error per component, `bounds` the regret [nat] per token of each round."""
    faults = (_find_fault(row, own, allowed) for row, own in zip(rows, bounds, strict=True))
    fault = next((fault for fault in faults if fault is not None), None)
    regrets = [regret for row in rows for regret in row["regrets"]]
    differing = sum(regret > 0 for regret in regrets)
    widest = [max(own, default=0.0) for own in bounds]

    def by_round(values: list[float], units: str, meaning: str) -> xr.DataArray:
        return variable(np.array(values), ["round"], units, meaning)

    data = {
        "text": by_round([row["text"] for row in rows], "1", "number of the text"),
        "number": by_round([row["round"] for row in rows], "1", "number of the round in the text"),
        "accepted": by_round([row["accepted"] for row in rows], "1", "drafts accepted"),
    }
    for name in COMPONENTS:
        worst = [np.max([*row["layers"][name].values()]) for row in rows]
        data[error_variable(name)] = by_round(worst, "1", f"relative error, {name}")
    data["regret"] = by_round([max(row["regrets"], default=0.0) for row in rows], "nat", "largest regret of a token")
    data["allowed_regret"] = by_round(widest, "nat", "largest allowed regret of a token")
    verdict: LosslessVerdict = "NOT lossless" if fault else "lossless up to numerics" if differing else "lossless"
    return LosslessReport(verdict, fault, xr.Dataset(data, attrs=attrs), floor, differing, len(regrets), max(widest))


def _find_fault(row: dict[str, Any], bounds: list[float], allowed: dict[str, float]) -> Fault | None:
    """The fault of a round, or None. Tokens come first, because the states before the round decided them."""
    beyond = [(regret, bound) for regret, bound in zip(row["regrets"], bounds, strict=True) if not regret <= bound]
    regret, bound = max(beyond, default=(0.0, 0.0))
    layers, allowed = {"verdict rule": {0: regret}, **row["layers"]}, allowed | {"verdict rule": bound}
    worst = {name: float(np.max([*errors.values()])) for name, errors in layers.items()}
    bad = {name: error for name, error in worst.items() if not error <= allowed[name]}  # NaN exceeds every bound
    if not bad:
        return None
    first = next(iter(bad))
    layer = next(layer for layer, error in layers[first].items() if not error <= allowed[first])
    return Fault(row["text"], row["round"], bad, allowed, row["excess"], layer)
