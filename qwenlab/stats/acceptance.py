"""Acceptance of drafts, counted one way: by place in the draft, label, place in the text, entropy and depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument, NothingMeasured
from qwenlab.stats.base.rounds import Bootstrap, about, about_all, bootstrap, places, read_rounds, said, several
from qwenlab.stats.base.source import Source, statistic
from qwenlab.stats.formulas import acceptance as formulas
from qwenlab.stats.formulas.resampling import by_cluster

By: TypeAlias = Literal["label", "position", "entropy"]

ENTROPIES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Lower edges of the bins of target entropy, nats; the last one is open."""

_COUNTS = {
    "drafted": "drafted: given to the main model",
    "tested": "tested: drafted, and all before it accepted",
    "accepted": "accepted: tested, and let stand by the rule",
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
    "label": ("", "label of the text"),
    "position": ("token", "tokens known before the round, at least"),
    "entropy": ("nat", "entropy of the main model's distribution, at least"),
}


@statistic
def acceptance(
    source: Source, *, by: By | None = None, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> xr.Dataset:
    """How many drafts stood, from the ledger of rounds (node "rounds"), each rate under its own name.

    By [draft], its place in the round from 1, and by [label] or [position] where asked:

    drafted, tested, accepted   counts: given to the main model; of those, all before it accepted; and it too
    unconditional               accepted_i / rounds that drafted place i
    conditional                 accepted_i / tested_i
    server_position_rate        agreed_i / rounds with drafts

    Of all rounds, likewise:

    acceptance_length           emitted / rounds, truncated ones too; of the others it is 1 + sum over i of
                                accepted_i / rounds, which is asserted
    draft_efficiency            accepted / drafted
    server_rate, server_length  agreed / drafted, and 1 + agreed / rounds with drafts. These, and the position rate, are
                                as vLLM and llama.cpp count: `agreed` holds what an end of text cut away too; NaN if
                                that is not known (a replay)
    rounds, truncated_rounds    all, and those that emitted fewer than accepted + 1;  prompts: texts they are of

    by     "label"; "position": tokens known before the round, in bins that double; "entropy": of the main model's
           distribution in the place of a tested draft: tested, accepted, conditional and prompts, no others make sense
    level  of the intervals, <name>_interval: percentile bootstrap, whole prompts drawn with replacement, within each
           group by itself. Few prompts make them too narrow: at level 0.95 they covered 0.89 of the time with 8
           prompts, 0.94 with 32, in simulation; where all or nothing was accepted they have no width. NaN below two.

    Depths are compared by `by_depth`. Raises BadArgument, and NothingMeasured and InconsistentRecording as
    `stats.base.rounds.read_rounds`.
    """
    how = Bootstrap(level, resamples, seed)
    if by == "entropy":
        return _by_entropy(read_rounds(source, "target_entropy"), how)
    if by not in (None, "label", "position"):
        raise BadArgument(
            f"by={by!r}: choose None, 'label', 'position' or 'entropy'.\n"
            "Ledgers of several depths are compared by qwenlab.stats.by_depth([...])."
        )
    return _acceptance(read_rounds(source), by, how)


@statistic
def by_depth(
    sources: Sequence[Source],
    *,
    by: Literal["label"] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """`acceptance` of several ledgers side by side, along `depth`: one ledger for each depth, under one rule.

    Places that a shallower ledger has no drafts for count 0 and have no rate. Raises BadArgument where two ledgers have
    the same depth, or another rule, temperature, kind of text or other labels; else as `acceptance`.
    """
    how = Bootstrap(level, resamples, seed)
    ledgers = several(sources)
    parts = [_acceptance(ledger, by, how) for ledger in ledgers]
    if by is not None and len({tuple(part[by].values.tolist()) for part in parts}) > 1:
        raise BadArgument("The ledgers have other labels.\nDecode the same prompts at each depth.")
    fill = {name: 0 if name in _COUNTS else np.nan for name in map(str, parts[0])}
    deepest = max((part["draft"].values for part in parts), key=len)
    wide = [part.reindex(draft=deepest, fill_value=fill) for part in parts]
    depths = xr.Variable("depth", [part.attrs["depth"] for part in parts]).to_index_variable()
    out = xr.concat(wide, depths, join="exact", combine_attrs="override")
    out["depth"].attrs.update(units="draft", long_name="depth")
    every = about_all(ledgers)
    for variable in out.data_vars.values():
        variable.attrs.update(every)
    return out.assign_attrs(every)


def _acceptance(data: xr.Dataset, by: Literal["label", "position"] | None, how: Bootstrap) -> xr.Dataset:
    """The counts and rates of a checked ledger, of each group by itself."""
    depth, prompt = data.sizes["draft"], data["prompt"].values
    counts = [data[name].values for name in ("drafted", "tested", "accepted", "agreed", "emitted")]
    rows = formulas.tally(*counts, depth=depth)
    names, member = _groups(data, by)
    clusters = [by_cluster(rows[member == group], prompt[member == group]) for group in range(len(names))]
    sums = np.stack([some.sum(axis=0) for some in clusters])
    ends = np.stack([how.interval(some, _rates(depth)) for some in clusters])
    truncated = np.bincount(member, data["emitted"].values <= data["accepted"].values, len(names))
    whole = {
        "rounds": (sums[:, -2], "round", "rounds"),
        "truncated_rounds": (truncated, "round", "truncated rounds: emitted < accepted + 1"),
        "prompts": (np.array([len(some) for some in clusters]), "prompt", "prompts"),
    }
    say = about(data)
    group = () if by is None else (by,)
    variables = {}
    for name, values in zip(_COUNTS, np.split(sums[:, : 3 * depth], 3, axis=1), strict=True):
        variables[name] = said(values.astype(np.int64), (*group, "draft"), "draft", _COUNTS[name], say)
    for name, (number, units, means) in whole.items():
        variables[name] = said(number.astype(np.int64), group, units, means, say)
    rates = _rates(depth)(sums)
    by_place = [slice(place * depth, (place + 1) * depth) for place in range(3)]
    spans = [*by_place, *range(3 * depth, 3 * depth + 4)]
    for (name, means), span in zip(_RATES.items(), spans, strict=True):
        dims = (*group, "draft") if isinstance(span, slice) else group
        units = "token" if name.endswith("length") else "1"
        variables |= bootstrap(name, rates[:, span], ends[:, span], dims, units, means, say, how)
    return _finished(variables, data, by, names, how)


def _rates(depth: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda sums: formulas.rates(sums, depth)


def _groups(data: xr.Dataset, by: Literal["label", "position"] | None) -> tuple[np.ndarray, np.ndarray]:
    """The groups' names, and of each round the number of its group."""
    if by is None:
        return np.array([""]), np.zeros(data.sizes["round"], np.int64)
    if by == "label":
        labels = data["label"].values.astype(str)
        names, first, index = np.unique(labels, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        return names[order].astype(object), np.argsort(order, kind="stable")[index]
    octave = np.frexp(data["begin"].values.astype(np.float64))[1]  # 1 for 1, 2 for 2 and 3, 3 for 4 to 7, ...
    held = np.unique(octave)
    return np.where(held > 0, 2.0 ** (held - 1), 0).astype(np.int64), np.searchsorted(held, octave)


def _by_entropy(data: xr.Dataset, how: Bootstrap) -> xr.Dataset:
    """Tested drafts by the entropy of the main model's distribution in their place; bins without any are left out."""
    depth = data.sizes["draft"]
    entropy, tested = data["target_entropy"].values, places(data["tested"], depth)
    known = tested & np.isfinite(entropy)
    if not known.any():
        raise NothingMeasured(
            "No tested draft of this ledger has a target_entropy.\nTake one that qwenlab.speculative made."
        )
    accepted = places(data["accepted"], depth)
    index = np.searchsorted(ENTROPIES, entropy, side="right") - 1
    held = np.unique(index[known])
    prompt, clusters = data["prompt"].values, []
    for each in held:
        here = known & (index == each)
        some = here.any(axis=1)
        rows = np.concatenate([here, here & accepted], axis=1)
        clusters.append(by_cluster(rows[some], prompt[some]))
    sums = np.stack([some.sum(axis=0) for some in clusters])
    ends = np.stack([how.interval(some, _conditional) for some in clusters])
    say, dims = about(data), ("entropy", "draft")
    variables = {
        name: said(values.astype(np.int64), dims, "draft", _COUNTS[name], say)
        for name, values in zip(("tested", "accepted"), np.split(sums, 2, axis=1), strict=True)
    }
    number = np.array([len(some) for some in clusters])
    variables["prompts"] = said(number, dims[:1], "prompt", "prompts", say)
    variables |= bootstrap("conditional", _conditional(sums), ends, dims, "1", _RATES["conditional"], say, how)
    return _finished(variables, data, "entropy", np.array(ENTROPIES)[held], how)


def _conditional(sums: np.ndarray) -> np.ndarray:
    tested, accepted = np.split(sums, 2, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return accepted / tested


def _finished(
    variables: dict[str, xr.DataArray], data: xr.Dataset, by: By | None, names: np.ndarray, how: Bootstrap
) -> xr.Dataset:
    """The variables with their coordinates, and on the whole what each says."""
    out = xr.Dataset(variables, {"draft": data["draft"].values} | ({} if by is None else {by: names}))
    out["draft"].attrs.update(units="1", long_name="place in the draft")
    if by is not None:
        units, means = _ALONG[by]
        out[by].attrs.update(units=units, long_name=means)
    return out.assign_attrs(about(data) | how.attrs | {"sample": "{}"})
