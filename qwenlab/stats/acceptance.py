"""Acceptance rates of drafts by place in the draft, label, place in the text, entropy and depth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument, NothingMeasured
from qwenlab.stats.base.rounds import about, about_all, by_place, read_rounds, several
from qwenlab.stats.base.source import Source, statistic
from qwenlab.stats.base.variables import Row, share_method, variables
from qwenlab.stats.formulas import acceptance as formulas
from qwenlab.stats.formulas.intervals import by_cluster, share_of_sums

By: TypeAlias = Literal["label", "position", "entropy"]

ENTROPIES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Lower edges of the bins of target entropy, nats; the last one is open."""

_COUNTS = {
    "drafted": "drafted: given to the target model",
    "tested": "tested: drafted, and all before it accepted",
    "accepted": "accepted: tested, and accepted by the rule",
}
_RATES = {
    "unconditional": "unconditional rate: accepted / rounds that drafted the place",
    "conditional": "conditional rate: accepted / tested in the place",
    "server_position_rate": "server position rate: agreed in the place / rounds with drafts",
    "acceptance_length": "acceptance length: emitted / rounds",
    "draft_efficiency": "draft efficiency: accepted / drafted",
    "server_rate": "server rate: agreed / drafted",
    "server_length": "server length: 1 + agreed / rounds with drafts",
}
_ALONG = {
    "label": {"units": "", "long_name": "label of the text"},
    "position": {"units": "token", "long_name": "tokens known before the round, at least"},
    "entropy": {"units": "nat", "long_name": "entropy of the target model's distribution, at least"},
}


@statistic
def acceptance(source: Source, *, by: By | None = None, level: float = 0.95) -> xr.Dataset:
    """Acceptance rates and acceptance length, from a ledger of rounds (node "rounds").

    By [draft], the place in the round from 1, and by [label] or [position] if `by` is one of these:

    drafted, tested, accepted   counts of drafts: verified by the target model; all before it accepted; itself accepted
    unconditional               accepted_i / rounds that drafted place i
    conditional                 accepted_i / tested_i
    server_position_rate        agreed_i / rounds with drafts

    Over whole rounds:

    acceptance_length           emitted / rounds, including truncated ones; over the others it is 1 + sum over i of
                                accepted_i / rounds, which is asserted
    draft_efficiency            accepted / drafted
    server_rate, server_length  agreed / drafted, and 1 + agreed / rounds with drafts. All server rates are as vLLM and
                                llama.cpp count: with drafts that an end of text cut away; NaN if not known (a replay)
    rounds, truncated_rounds    all, and those that emitted fewer than accepted + 1;  prompts: number of texts

    by     "label"; "position": tokens known before the round, in bins that double; "entropy": of the target model's
           distribution at the place of a tested draft: only tested, accepted, conditional and prompts
    level  of the intervals <name>_interval: `formulas.intervals.share` over whole prompts, a trial being a round; NaN
           below two prompts

    `by_depth` compares depths. Raises BadArgument, NothingMeasured and InconsistentRecording.
    """
    method = share_method(level, "prompt")
    if by == "entropy":
        return _by_entropy(read_rounds(source, "target_entropy"), method)
    if by not in (None, "label", "position"):
        raise BadArgument(
            f"by={by!r}: choose None, 'label', 'position' or 'entropy'.\n"
            "Ledgers of several depths are compared by qwenlab.stats.by_depth([...])."
        )
    return _acceptance(read_rounds(source), by, method)


@statistic
def by_depth(sources: Sequence[Source], *, by: Literal["label"] | None = None, level: float = 0.95) -> xr.Dataset:
    """Compute `acceptance` of several ledgers along `depth`: one ledger per depth, under one rule.

    Places beyond a ledger's depth have count 0 and no rate. Also raises BadArgument if two ledgers have the same depth,
    or differ in rule, temperature, kind of text or labels.
    """
    method = share_method(level, "prompt")
    ledgers = several(sources)
    parts = [_acceptance(ledger, by, method) for ledger in ledgers]
    if by is not None and len({tuple(part[by].values.tolist()) for part in parts}) > 1:
        raise BadArgument("The ledgers have different labels.\nDecode the same prompts at each depth.")
    fill = {name: 0 if name in _COUNTS else np.nan for name in map(str, parts[0])}
    deepest = max((part["draft"].values for part in parts), key=len)
    wide = [part.reindex(draft=deepest, fill_value=fill) for part in parts]
    depths = xr.Variable("depth", [part.attrs["depth"] for part in parts]).to_index_variable()
    out = xr.concat(wide, depths, join="exact", combine_attrs="override")
    out["depth"].attrs.update(units="draft", long_name="depth")
    facts = about_all(ledgers)
    for array in out.data_vars.values():
        array.attrs.update(facts)
    return out.assign_attrs(facts)


def _acceptance(data: xr.Dataset, by: Literal["label", "position"] | None, method: dict[str, Any]) -> xr.Dataset:
    """Counts and rates of a checked ledger, separately for each group."""
    depth, prompt = data.sizes["draft"], data["prompt"].values
    counts = [data[name].values for name in ("drafted", "tested", "accepted", "agreed", "emitted")]
    rows = formulas.tally(*counts, depth=depth)
    names, member = _groups(data, by)
    clusters = [by_cluster(rows[member == group], prompt[member == group]) for group in range(len(names))]
    sums = np.stack([some.sum(axis=0) for some in clusters])
    group: tuple[str, ...] = () if by is None else (by,)
    by_draft = (*group, "draft")
    truncated = np.bincount(member, data["emitted"].values <= data["accepted"].values, len(names)).astype(np.int64)
    table = _counts(("drafted", "tested", "accepted"), sums[:, : 3 * depth], by_draft) | {
        "rounds": Row(sums[:, -2].astype(np.int64), group, "round", "rounds"),
        "truncated_rounds": Row(truncated, group, "round", "truncated rounds: emitted < accepted + 1"),
        "prompts": Row(np.array([len(some) for some in clusters]), group, "prompt", "prompts"),
    }
    rates, trials = partial(formulas.rates, depth=depth), partial(formulas.trials, depth=depth)
    least, most = formulas.limits(depth)
    interval = partial(share_of_sums, of=rates, level=method["level"], least=least, most=most)
    ends = np.stack([interval(some, trials=trials(some)) for some in clusters])
    spans = [*(slice(place * depth, (place + 1) * depth) for place in range(3)), *range(3 * depth, 3 * depth + 4)]
    for (name, meaning), span in zip(_RATES.items(), spans, strict=True):
        dims = by_draft if isinstance(span, slice) else group
        units = "token" if name.endswith("length") else "1"
        table[name] = Row(rates(sums)[:, span], dims, units, meaning, ends[:, span])
    return _dataset(table, data, by, names, method)


def _counts(names: Sequence[str], sums: np.ndarray, dims: Sequence[str]) -> dict[str, Row]:
    by_name = zip(names, np.split(sums, len(names), axis=1), strict=True)
    return {name: Row(values.astype(np.int64), dims, "draft", _COUNTS[name]) for name, values in by_name}


def _groups(data: xr.Dataset, by: Literal["label", "position"] | None) -> tuple[np.ndarray, np.ndarray]:
    """Names of the groups, and the index of each round's group."""
    if by is None:
        return np.array([""]), np.zeros(data.sizes["round"], np.int64)
    if by == "label":
        labels = data["label"].values.astype(str)
        names, first, index = np.unique(labels, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        return names[order].astype(object), np.argsort(order, kind="stable")[index]
    octave = np.frexp(data["begin"].values.astype(np.float64))[1]  # 1 for 1, 2 for 2 and 3, 3 for 4 to 7, ...
    octaves = np.unique(octave)
    return np.where(octaves > 0, 2.0 ** (octaves - 1), 0).astype(np.int64), np.searchsorted(octaves, octave)


def _by_entropy(data: xr.Dataset, method: dict[str, Any]) -> xr.Dataset:
    """Conditional rate of tested drafts by entropy of the target model's distribution; empty bins are left out."""
    depth = data.sizes["draft"]
    entropy, tested = data["target_entropy"].values, by_place(data["tested"], depth)
    known = tested & np.isfinite(entropy)
    if not known.any():
        raise NothingMeasured(
            "No tested draft of this ledger has a target_entropy.\nUse a ledger of qwenlab.speculative."
        )
    accepted = by_place(data["accepted"], depth)
    index = np.searchsorted(ENTROPIES, entropy, side="right") - 1
    bins = np.unique(index[known])
    prompt, clusters = data["prompt"].values, []
    for number in bins:
        here = known & (index == number)
        some = here.any(axis=1)
        rows = np.concatenate([here, here & accepted], axis=1)
        clusters.append(by_cluster(rows[some], prompt[some]))
    sums = np.stack([some.sum(axis=0) for some in clusters])
    ends = np.stack([share_of_sums(some, _conditional, some[:, :depth], method["level"]) for some in clusters])
    dims, meaning = ("entropy", "draft"), _RATES["conditional"]
    table = _counts(("tested", "accepted"), sums, dims) | {
        "prompts": Row(np.array([len(some) for some in clusters]), dims[:1], "prompt", "prompts"),
        "conditional": Row(_conditional(sums), dims, "1", meaning, ends),
    }
    return _dataset(table, data, "entropy", np.array(ENTROPIES)[bins], method)


def _conditional(sums: np.ndarray) -> np.ndarray:
    tested, accepted = np.split(sums, 2, axis=-1)
    return accepted / tested


def _dataset(
    table: dict[str, Row], data: xr.Dataset, by: By | None, names: np.ndarray, method: dict[str, Any]
) -> xr.Dataset:
    """Return the variables of a table with their coordinates and common attrs."""
    at: dict[str, Any] = {"draft": ("draft", data["draft"].values, {"units": "1", "long_name": "place in the draft"})}
    if by is not None:
        at[by] = (by, names, _ALONG[by])
    facts = about(data)
    return xr.Dataset(variables(table, facts, method), at, facts | method | {"sample": "{}"})
