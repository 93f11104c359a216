"""Does drafting pay: the time of its steps against the tokens they bring, by depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from qwenlab.errors import MissingVariable, NothingMeasured
from qwenlab.stats.base.rounds import Bootstrap, about, about_all, bootstrap, places, said, several
from qwenlab.stats.base.source import Source, statistic
from qwenlab.stats.base.step_costs import StepCosts, by_width, read_costs
from qwenlab.stats.expert_union import expert_union
from qwenlab.stats.formulas import acceptance as formulas
from qwenlab.stats.formulas.resampling import by_cluster

PARTS = ("draft", "verify", "rollback", "overhead", "unexplained")
"""What a round's time is spent on; unexplained: measured, and in none of the costs."""

_AS_RUN = {
    "acceptance_length": ("token", "acceptance length: emitted / rounds"),
    "as_run_tokens_per_second": ("token/s", "predicted tokens a second of the rounds as they were"),
    "as_run_speedup": ("times", "predicted speed-up of the rounds as they were"),
    "measured_tokens_per_second": ("token/s", "measured tokens a second"),
    "gap": ("1", "gap: measured seconds a token over those predicted of the rounds as they were, less 1"),
}


@statistic
def speedup(
    sources: Source | Sequence[Source],
    costs: xr.Dataset,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """What drafting would pay at each fixed [depth], and what it did pay where ledgers say so.

    Predicted from the deepest ledger's conditional rates c and the costs:

    expected_length      1 + sum over i <= d of c_1 ... c_i, tokens a round
    seconds_per_round    d draft_step + verify_step(d + 1) + rollback + overhead
    tokens_per_second    expected_length / seconds_per_round
    speedup              tokens_per_second x plain_step
    break_even_length    seconds_per_round / plain_step: tokens a round must emit to be as fast as plain decoding
    break_even           the constant conditional rate a that emits as many: 1 + a + ... + a^d; 0 if it pays with none
                         accepted, NaN if it never pays
    best_depth           where speedup is largest, and best_speedup there; 0 and 1 (plain decoding) if none is above 1

    Of each ledger's own rounds, at its depth, NaN elsewhere:

    acceptance_length    emitted / rounds
    as_run_speedup       by the costs, of the rounds as they were, ragged and cut; and as_run_tokens_per_second
    measured_speedup     from the ledger's `seconds`, of each round or, in its attrs, of all; over plain decoding: the
                         attr plain_seconds_per_token, or plain_step; and measured_tokens_per_second
    gap                  measured seconds a token over those as run, less 1
    seconds_per_token    [depth, part] draft, verify, rollback, overhead, and what of the measured is unexplained

    Where the costs say how many experts a step touches:

    block_bytes          of experts that a verify step of d + 1 tokens reads;  plain_bytes: that a plain step reads
    bytes_per_token      block_bytes / expected_length

    sources  one ledger (node "rounds"), or several of different depths as `by_depth` takes them
    costs    plain_step, draft_step, rollback and verify_step [width, 1 to depth + 1] in seconds; overhead, if measured;
             experts_touched [width], in experts a MoE layer, or expert_choice as `expert_union` takes it, with attrs
             bytes_per_expert and moe_layers, if known. `qwenlab.speculative.step_times` measures them.
    level    of the intervals <name>_interval: percentile bootstrap, whole prompts drawn with replacement; the costs are
             taken as exact

    Rounds of any depth are supposed to begin at places alike, and drafts that a policy allowed to be like those it did
    not: what was run and measured tells how far that carries. The prompt's prefill is in none of these.

    Raises BadArgument, MissingVariable, NothingMeasured, else as `by_depth`.
    """
    how = Bootstrap(level, resamples, seed)
    ledgers = several(sources)
    data = ledgers[-1]
    depth, say = data.sizes["draft"], about(data)
    paid = read_costs(costs, depth + 1)
    rows = np.concatenate([places(data[name], depth) for name in ("tested", "accepted")], axis=1)
    sums = by_cluster(rows, data["prompt"].values)
    if not sums[:, 0].any():
        raise NothingMeasured("No draft of this ledger was tested: nothing says what drafting brings.")
    seconds = paid.fixed(depth)
    even = seconds / paid.plain

    def predicted(sums: np.ndarray) -> np.ndarray:
        return np.concatenate([formulas.chain(sums), formulas.chain(sums) / even], axis=-1)

    (length, speed), ends = np.split(predicted(sums.sum(axis=0)), 2), np.split(how.interval(sums, predicted), 2)
    best, most = (int(np.nanargmax(speed)) + 1, np.nanmax(speed)) if np.nanmax(speed) > 1 else (0, 1.0)
    break_even = np.array([formulas.break_even(float(each), d) for d, each in enumerate(even, start=1)])
    at = ("depth",)
    variables = {
        **bootstrap("expected_length", length, ends[0], at, "token", "predicted acceptance length", say, how),
        "seconds_per_round": said(seconds, at, "s", "predicted seconds a round", say),
        "tokens_per_second": said(length / seconds, at, "token/s", "predicted tokens a second", say),
        **bootstrap("speedup", speed, ends[1], at, "times", "predicted speed-up over plain decoding", say, how),
        "break_even_length": said(even, at, "token", "break-even acceptance length", say),
        "break_even": said(break_even, at, "1", "break-even: the constant conditional rate that pays for itself", say),
        "best_depth": said(np.array(best), (), "draft", "best depth", say),
        "best_speedup": said(np.array(most), (), "times", "predicted speed-up at the best depth", say),
        **_as_run(ledgers, depth, paid, how),
        **_bytes(costs, length, say),
    }
    out = xr.Dataset(variables, {"depth": np.arange(1, depth + 1), "part": list(PARTS)})
    out["depth"].attrs.update(units="draft", long_name="depth")
    facts = {f"costs_{name}": value for name, value in costs.attrs.items() if isinstance(value, str | int | float)}
    return out.assign_attrs(say | how.attrs | facts | {"sample": "{}"})


def _as_run(ledgers: Sequence[xr.Dataset], depth: int, paid: StepCosts, how: Bootstrap) -> dict[str, xr.DataArray]:
    """What the rounds of each ledger would cost, and what they did: in the row of its depth."""
    rows = {ledger.sizes["draft"]: _of_ledger(ledger, paid, how) for ledger in ledgers}
    say = about_all(ledgers)

    def over_depth(name: str) -> np.ndarray:
        nothing = np.full_like(rows[depth][name], np.nan)
        return np.stack([rows[d][name] if d in rows else nothing for d in range(1, depth + 1)])

    at = ("depth",)
    variables = {name: said(over_depth(name), at, units, means, say) for name, (units, means) in _AS_RUN.items()}
    speed, ends = over_depth("measured_speedup"), over_depth("measured_speedup_interval")
    means = "measured speed-up over plain decoding"
    variables |= bootstrap("measured_speedup", speed, ends, at, "times", means, say, how)
    parts = said(over_depth("seconds_per_token"), (*at, "part"), "s/token", "seconds a token, by part", say)
    return variables | {"seconds_per_token": parts}


def _of_ledger(data: xr.Dataset, paid: StepCosts, how: Bootstrap) -> dict[str, np.ndarray]:
    """Of the rounds of one ledger as they were: their length, predicted and measured speed, and where the time goes."""
    tokens, by_part = data["emitted"].values.astype(np.float64), paid.of(data)
    each = data["seconds"].values if "seconds" in data else np.full(len(tokens), np.nan)
    spent = float(data.attrs.get("seconds", np.nan)) if np.isnan(each).any() else float(each.sum())
    plain = float(data.attrs.get("plain_seconds_per_token", paid.plain))
    sums = by_cluster(np.stack([tokens, each], axis=1), data["prompt"].values)
    emitted, predicted = tokens.sum(), by_part.sum()
    values = {
        "acceptance_length": emitted / len(tokens),
        "as_run_tokens_per_second": emitted / predicted,
        "as_run_speedup": emitted / predicted * paid.plain,
        "measured_tokens_per_second": emitted / spent,
        "measured_speedup": emitted / spent * plain,
        "measured_speedup_interval": how.interval(sums, lambda s: s[..., :1] / s[..., 1:] * plain)[0],
        "gap": spent / predicted - 1,
        "seconds_per_token": np.append(by_part, spent - predicted) / emitted,
    }
    return {name: np.asarray(value) for name, value in values.items()}


def _bytes(costs: xr.Dataset, length: np.ndarray, say: dict[str, Any]) -> dict[str, xr.DataArray]:
    """Bytes of experts that a verify step of each depth reads; nothing where the costs do not say."""
    held = next((name for name in ("experts_touched", "expert_choice") if name in costs), None)
    if held is None:
        return {}
    facts = costs.attrs | costs[held].attrs
    if missing := [name for name in ("bytes_per_expert", "moe_layers") if name not in facts]:
        raise MissingVariable(
            f"The costs have {held}, but do not say {', '.join(missing)}, so bytes cannot be said.\n"
            f"Set costs.attrs, or leave {held} out."
        )
    widest = len(length) + 1
    if held == "expert_choice":
        touched = expert_union(costs[held], widths=range(1, widest + 1))["experts_touched"].values
    else:
        touched = by_width(costs, held, widest)
    read = touched * float(facts["bytes_per_expert"]) * float(facts["moe_layers"])
    return {
        "block_bytes": said(read[1:], ("depth",), "B", "experts that a verify step reads", say),
        "bytes_per_token": said(read[1:] / length, ("depth",), "B/token", "experts read for an emitted token", say),
        "plain_bytes": said(read[0], (), "B", "experts that a plain step reads", say),
    }
