"""Teacher-forced agreement of drafts with the target model along given texts; not comparable with acceptance."""

from __future__ import annotations

import numpy as np
import xarray as xr

from qwenlab.errors import InconsistentRecording, NothingMeasured
from qwenlab.stats.base.source import Source, read, statistic
from qwenlab.stats.base.variables import Row, share_method, variables
from qwenlab.stats.formulas.intervals import by_cluster, share_of_sums

_NEEDS = ("draft_token", "target_token", "text", "position", "begin", "length", "label", "end")
_RATES = {
    "teacher_forced": "teacher-forced agreement: drafts equal to the target model's choice / drafts",
    "teacher_forced_unconditional": "teacher-forced unconditional agreement: chains agreeing so far / chains",
    "teacher_forced_conditional": "teacher-forced conditional agreement: agreeing / chains agreeing before",
}


@statistic
def agreement(source: Source, *, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """Rate at which drafts along given texts equal the target model's choice, from a trace, by [label,] [draft].

    chains                        number of places of the texts from which a chain of k drafts was compared
    teacher_forced                draft k equals the target model's choice for its place / chains
    teacher_forced_unconditional  drafts 1 to k all do / chains
    teacher_forced_conditional    draft k does / chains whose drafts 1 to k - 1 do
    texts                         number of texts

    Here every emitted token begins a chain; in decoding, only the last token of a round does. Rounds begin where drafts
    have just failed, and failures cluster, so in decoding the first place has a lower rate: a selection effect. Along
    texts that the model did not write, a draft is compared with the model's choice after the text so far.

    level  of the intervals <name>_interval: `formulas.intervals.share` over whole texts, a trial being a chain

    Raises NothingMeasured where no draft can be compared, InconsistentRecording for a trace without depth and text.
    """
    method = share_method(level, "text")
    data = read(source, "trace", *_NEEDS)
    if missing := [name for name in ("depth", "text") if name not in data.attrs]:
        raise InconsistentRecording(
            f"This trace lacks the attributes {', '.join(missing)}; qwenlab.speculative.trace sets them."
        )
    compared, equal = _compared(data)
    text, depth = data["text"].values, data.sizes["draft"]
    so_far = np.logical_and.accumulate(equal, axis=1)
    before = np.concatenate([compared[:, :1], compared[:, 1:] & so_far[:, :-1]], axis=1)
    rows = np.concatenate([compared, equal & compared, so_far & compared, before], axis=1)
    some = compared.any(axis=1)
    if not some.any():
        raise NothingMeasured("No draft of this trace can be compared with a target token.\nTrace longer texts.")
    labels = data["label"].values.astype(str)[text] if by_label else np.full(len(text), "")
    names = list(dict.fromkeys(labels[some].tolist()))
    clusters = [by_cluster(rows[here], text[here]) for here in (some & (labels == name) for name in names)]
    sums = np.stack([rows.sum(axis=0) for rows in clusters])
    trials = np.r_[:depth, :depth, 3 * depth : 4 * depth]  # columns: the number of chains that each rate is a mean over
    ends = np.stack([share_of_sums(rows, _rates, rows.take(trials, axis=1), level) for rows in clusters])
    group = ("label",) if by_label else ()
    facts = {"rule": "greedy"} | {name: data.attrs[name] for name in ("depth", "text", "hidden") if name in data.attrs}
    facts |= {"origin": "trace", "chains": int(some.sum()), "texts": len(np.unique(text[some]))}
    dims = (*group, "draft")
    table = {
        "chains": Row(sums[:, :depth].astype(np.int64), dims, "chain", "chains compared"),
        "texts": Row(np.array([len(rows) for rows in clusters]), group, "text", "texts"),
    }
    for place, (name, meaning) in enumerate(_RATES.items()):
        span = slice(place * depth, (place + 1) * depth)
        table[name] = Row(_rates(sums)[:, span], dims, "1", meaning, ends[:, span])
    at = {"draft": ("draft", np.arange(1, depth + 1), {"units": "1", "long_name": "place in the draft"})}
    out = xr.Dataset(variables(table, facts, method), at, facts | method | {"sample": "{}"})
    return out.assign_coords(label=np.array(names, object)) if by_label else out


def _compared(data: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Whether each draft can be compared, and whether it equals the target model's choice: bool [row, draft] each.

    The target model's choice for draft k of row t follows the tokens up to t + k - 1: target_token of that row.
    """
    text, position = data["text"].values, data["position"].values
    drafts, target = data["draft_token"].values, data["target_token"].values
    begin, length = data["begin"].values[text], data["length"].values[text]
    last = length - (data["end"].values.astype(str)[text] == "eos")  # no drafts after an end of text
    compared, equal = np.zeros(drafts.shape, bool), np.zeros(drafts.shape, bool)
    rows = np.arange(len(text))
    for step in range(drafts.shape[1]):
        compared[:, step] = (position >= begin) & (position + step < last) & (drafts[:, step] >= 0)
        equal[:, step] = drafts[:, step] == target[np.minimum(rows + step, len(rows) - 1)]
    return compared, equal


def _rates(sums: np.ndarray) -> np.ndarray:
    """Agreement, unconditional and conditional agreement from sums [..., 4 depth]: [..., 3 depth]."""
    compared, equal, so_far, before = np.split(sums, 4, axis=-1)
    return np.concatenate([equal / compared, so_far / compared, so_far / before], axis=-1)
