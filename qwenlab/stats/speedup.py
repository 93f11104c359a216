"""Speed-up of drafting over plain decoding by depth: predicted from step costs, and measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument, MissingVariable, NothingMeasured
from qwenlab.stats.base.rounds import about, about_all, by_place, several
from qwenlab.stats.base.source import Source, statistic
from qwenlab.stats.base.variables import Row, Variables, jackknife_method, share_method, variables
from qwenlab.stats.experts import expert_union
from qwenlab.stats.formulas import acceptance as formulas
from qwenlab.stats.formulas.intervals import by_cluster, jackknife_of_sums, share_of_sums

PARTS = ("draft", "verify", "rollback", "overhead", "unexplained")
"""Parts of a round's time; unexplained: measured, but not in any of the costs."""

_COSTS = ("plain_step", "verify_step", "draft_step", "rollback")
_AGAIN = "Measure the steps again, on the machine of interest."
_AS_RUN = {
    "acceptance_length": ("token", "acceptance length: emitted / rounds"),
    "as_run_tokens_per_second": ("token/s", "predicted tokens per second of the rounds as run"),
    "as_run_speedup": ("times", "predicted speed-up of the rounds as run"),
    "measured_tokens_per_second": ("token/s", "measured tokens per second"),
    "measured_speedup": ("times", "measured speed-up over plain decoding"),
    "gap": ("1", "gap: measured seconds per token over the predicted of the rounds as run, less 1"),
}


@statistic
def speedup(sources: Source | Sequence[Source], costs: xr.Dataset, *, level: float = 0.95) -> xr.Dataset:
    """Predicted speed-up of drafting at each fixed [depth], and the measured speed-up if ledgers have times.

    Predicted from the deepest ledger's conditional rates c and the costs:

    expected_length      1 + sum over i <= d of c_1 ... c_i, tokens per round
    seconds_per_round    d draft_step + verify_step(d + 1) + rollback + overhead
    tokens_per_second    expected_length / seconds_per_round
    speedup              tokens_per_second x plain_step
    break_even_length    seconds_per_round / plain_step: tokens per round needed to be as fast as plain decoding
    break_even           constant conditional rate a with 1 + a + ... + a^d = break_even_length; 0 if drafting pays
                         without accepted drafts, NaN if it never pays
    best_depth           depth with the largest speedup, best_speedup; 0 and 1 (plain decoding) if none is above 1

    Of each ledger's own rounds, at its depth, NaN at other depths:

    acceptance_length    emitted / rounds
    as_run_speedup       predicted by the costs for the rounds as run, ragged and truncated; also
                         as_run_tokens_per_second
    measured_speedup     from the ledger's `seconds` of each round or, in its attrs, of all; over plain decoding: the
                         attr plain_seconds_per_token, or plain_step; also measured_tokens_per_second
    gap                  measured seconds per token over those predicted as run, minus 1
    seconds_per_token    [depth, part] draft, verify, rollback, overhead, and the unexplained part

    Bytes of experts, if the costs contain the number of experts that a step touches:

    block_bytes          read by a verification step of d + 1 tokens;  plain_bytes: read by a plain step
    bytes_per_token      block_bytes / expected_length

    sources  one ledger (node "rounds"), or several of different depths as for `by_depth`
    costs    plain_step, draft_step, rollback and verify_step [width, 1 to depth + 1] in seconds; overhead, if measured;
             experts_touched [width], in experts per MoE layer, or expert_choice as for `expert_union`, with attrs
             bytes_per_expert and moe_layers, if known. `qwenlab.speculative.step_times` measures them.
    level    of the intervals <name>_interval over whole prompts: of predictions `formulas.intervals.share`, a trial
             being a round; of measured_speedup `formulas.intervals.jackknife` of its logarithm. Costs count as exact

    This assumes that rounds of any depth begin at similar places, and that drafts which a policy allowed are like those
    it did not; the measured values test this. The prompt's prefill is not included. Raises MissingVariable for a cost
    that is missing, BadArgument for an invalid one, else as `by_depth`.
    """
    method = share_method(level, "prompt")
    ledgers = several(sources)
    data = ledgers[-1]
    depth, about_rates = data.sizes["draft"], about(data)
    paid = _read_costs(costs, depth + 1)
    rows = np.concatenate([by_place(data[name], depth) for name in ("tested", "accepted")], axis=1)
    sums = by_cluster(rows, data["prompt"].values)
    if not sums[:, 0].any():
        raise NothingMeasured("No draft of this ledger was tested, so the gain of drafting is not known.")
    depths, seconds = np.arange(1, depth + 1), paid.fixed(depth)
    even, rounds = seconds / paid.plain, np.repeat(sums[:, :1], depth, axis=1)
    length = formulas.chain(sums.sum(axis=0))
    ends = share_of_sums(sums, formulas.chain, rounds, level, least=np.ones(depth), most=depths + 1)
    speed = length / even
    best, most = (int(np.nanargmax(speed)) + 1, np.nanmax(speed)) if np.nanmax(speed) > 1 else (0, 1.0)
    break_even = np.array([formulas.break_even(float(tokens), d) for d, tokens in enumerate(even, start=1)])
    at = ("depth",)
    table = {
        "expected_length": Row(length, at, "token", "predicted acceptance length", ends),
        "speedup": Row(speed, at, "times", "predicted speed-up over plain decoding", ends / even[:, None]),
        "seconds_per_round": Row(seconds, at, "s", "predicted seconds per round"),
        "tokens_per_second": Row(length / seconds, at, "token/s", "predicted tokens per second"),
        "break_even_length": Row(even, at, "token", "break-even acceptance length"),
        "break_even": Row(break_even, at, "1", "break-even: the constant conditional rate that pays for itself"),
        "best_depth": Row(best, (), "draft", "best depth"),
        "best_speedup": Row(most, (), "times", "predicted speed-up at the best depth"),
        **_bytes(costs, length),
    }
    facts = {f"costs_{name}": value for name, value in costs.attrs.items() if isinstance(value, str | int | float)}
    return xr.Dataset(
        variables(table, about_rates, method) | _as_run(ledgers, depth, paid, level),
        {"depth": ("depth", depths, {"units": "draft", "long_name": "depth"}), "part": list(PARTS)},
        about_rates | method | facts | {"sample": "{}"},
    )


def _as_run(ledgers: Sequence[xr.Dataset], depth: int, paid: _StepCosts, level: float) -> Variables:
    """Predicted and measured costs of the rounds of each ledger, at its depth."""
    rows = {ledger.sizes["draft"]: _of_ledger(ledger, paid, level) for ledger in ledgers}

    def over_depth(name: str) -> np.ndarray:
        nothing = np.full_like(rows[depth][name], np.nan)
        return np.stack([rows[d][name] if d in rows else nothing for d in range(1, depth + 1)])

    table = {name: Row(over_depth(name), ("depth",), *row) for name, row in _AS_RUN.items()}
    table["measured_speedup"] = table["measured_speedup"]._replace(ends=over_depth("measured_speedup_interval"))
    table["seconds_per_token"] = Row(
        over_depth("seconds_per_token"), ("depth", "part"), "s/token", "seconds per token, by part"
    )
    return variables(table, about_all(ledgers), jackknife_method(level, "prompt"))


def _of_ledger(data: xr.Dataset, paid: _StepCosts, level: float) -> dict[str, np.ndarray]:
    """Acceptance length of one ledger, its predicted and measured speed, and its time by part."""
    tokens, by_part = data["emitted"].values.astype(np.float64), paid.of(data)
    times = data["seconds"].values if "seconds" in data else np.full(len(tokens), np.nan)
    spent = float(data.attrs.get("seconds", np.nan)) if np.isnan(times).any() else float(times.sum())
    plain = float(data.attrs.get("plain_seconds_per_token", paid.plain))
    sums = by_cluster(np.stack([tokens, times], axis=1), data["prompt"].values)
    every = np.ones((len(sums), 1), bool)
    ends = np.exp(jackknife_of_sums(sums, lambda s: np.log(s[..., :1] / s[..., 1:] * plain), every, level))
    emitted, predicted = tokens.sum(), by_part.sum()
    values = {
        "acceptance_length": emitted / len(tokens),
        "as_run_tokens_per_second": emitted / predicted,
        "as_run_speedup": emitted / predicted * paid.plain,
        "measured_tokens_per_second": emitted / spent,
        "measured_speedup": emitted / spent * plain,
        "measured_speedup_interval": ends[0],
        "gap": spent / predicted - 1,
        "seconds_per_token": np.append(by_part, spent - predicted) / emitted,
    }
    return {name: np.asarray(value) for name, value in values.items()}


def _bytes(costs: xr.Dataset, length: np.ndarray) -> dict[str, Row]:
    """Bytes of experts that a verification step of each depth reads; empty if the costs do not contain experts."""
    name = next((name for name in ("experts_touched", "expert_choice") if name in costs), None)
    if name is None:
        return {}
    facts = costs.attrs | costs[name].attrs
    if missing := [fact for fact in ("bytes_per_expert", "moe_layers") if fact not in facts]:
        raise MissingVariable(
            f"The costs have {name} without {', '.join(missing)}, so its bytes are not known.\n"
            f"Set costs.attrs, or leave {name} out."
        )
    widest = len(length) + 1
    if name == "expert_choice":
        touched = expert_union(costs[name], widths=range(1, widest + 1))["experts_touched"].values
    else:
        touched = _by_width(costs, name, widest)
    read = touched * float(facts["bytes_per_expert"]) * float(facts["moe_layers"])
    return {
        "block_bytes": Row(read[1:], ("depth",), "B", "experts that a verify step reads"),
        "bytes_per_token": Row(read[1:] / length, ("depth",), "B/token", "experts read per emitted token"),
        "plain_bytes": Row(read[0], (), "B", "experts that a plain step reads"),
    }


class _StepCosts(NamedTuple):
    """Seconds per plain step, verify step [width - 1], draft step and rollback; overhead: of the loop, per round."""

    plain: float
    verify: np.ndarray
    draft: float
    rollback: float
    overhead: float

    def fixed(self, depth: int) -> np.ndarray:
        """Seconds per round that drafts d tokens, d = 1 to depth: [depth]."""
        d = np.arange(1, depth + 1)
        return d * self.draft + self.verify[d] + self.rollback + self.overhead

    def of(self, data: xr.Dataset) -> np.ndarray:
        """Seconds of all rounds of a ledger together: drafting, verifying, rolling back, and the surrounding loop."""
        rounds = data.sizes["round"]
        draft, verify = data["proposed"].values.sum() * self.draft, self.verify[data["drafted"].values].sum()
        return np.array([draft, verify, rounds * self.rollback, rounds * self.overhead])


def _read_costs(costs: xr.Dataset, widest: int) -> _StepCosts:
    """Return the costs of steps of width 1 to `widest`; raises MissingVariable, or BadArgument for invalid times."""
    if not isinstance(costs, xr.Dataset):
        raise BadArgument(f"costs is a {type(costs).__name__}: give a Dataset with {', '.join(_COSTS)}, in seconds.")
    if missing := [name for name in _COSTS if name not in costs]:
        has = ", ".join(map(str, costs)) or "nothing"
        raise MissingVariable(f"No {', '.join(missing)} in the costs; they have {has}.\nMeasure it, in seconds.")
    present = {name: costs[name] for name in (*_COSTS, "overhead") if name in costs}
    for name, cost in present.items():
        if cost.attrs.get("units", "s") != "s":
            raise BadArgument(f"costs[{name!r}] is in {cost.attrs['units']}, not in seconds (s).\nConvert it first.")
        enough = cost.values >= 0 if name in ("rollback", "overhead") else cost.values > 0
        if not (np.isfinite(cost.values) & enough).all():
            raise BadArgument(f"costs[{name!r}] is {cost.values.tolist()}, not a time in seconds.\n{_AGAIN}")
    single = {name: float(cost) for name, cost in present.items() if name != "verify_step"}
    return _StepCosts(
        plain=single["plain_step"],
        verify=_by_width(costs, "verify_step", widest),
        draft=single["draft_step"],
        rollback=single["rollback"],
        overhead=single.get("overhead", 0.0),
    )


def _by_width(costs: xr.Dataset, name: str, widest: int) -> np.ndarray:
    """Return a cost by width, 1 to `widest`; raises BadArgument for a width that was not measured."""
    needed = list(range(1, widest + 1))
    measured = costs["width"].values.tolist() if "width" in costs.coords and costs[name].dims == ("width",) else []
    if missing := sorted(set(needed) - set(measured)):
        lacks = f"not width {', '.join(map(str, missing))}" if measured else "no coordinate width"
        raise BadArgument(
            f"costs[{name!r}] has {lacks}: a round of {widest - 1} drafts is verified in one step of width {widest}.\n"
            f"{_AGAIN}"
        )
    return np.asarray(costs[name].sel(width=needed).values, np.float64)
