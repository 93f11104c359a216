"""Agreement of drafts with the main model along given texts: another number than acceptance."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from qwenlab.errors import InconsistentRecording, NothingMeasured
from qwenlab.stats.base.rounds import Bootstrap, bootstrap, said
from qwenlab.stats.base.source import Source, read, statistic
from qwenlab.stats.formulas.resampling import by_cluster

_NEEDS = ("draft_token", "target_token", "text", "position", "begin", "length", "label", "end")
_RATES = {
    "teacher_forced": "teacher-forced agreement: drafts equal to the main model's choice / drafts",
    "teacher_forced_unconditional": "teacher-forced unconditional agreement: chains agreeing so far / chains",
    "teacher_forced_conditional": "teacher-forced conditional agreement: agreeing / chains agreeing before",
}


@statistic
def agreement(
    source: Source, *, by_label: bool = False, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> xr.Dataset:
    """How often drafts along given texts equal the main model's choice, from a trace, by [label and] [draft].

    chains                        the places of the texts from which a chain of k drafts was compared: counts
    teacher_forced                draft k equals the main model's choice for its place / chains
    teacher_forced_unconditional  drafts 1 to k all do / chains
    teacher_forced_conditional    draft k does / chains whose drafts 1 to k - 1 do
    texts                         they are of

    Every emitted token begins a chain here; in decoding only those do that end a round. Rounds begin where drafts have
    just failed, and failures keep company, so that online the first place has a lower rate: selection, and no fault.
    What lies beyond the text is left out, and after its end-of-text token. Along texts that the model did not write, a
    draft is compared with its choice after the given words.

    level  of the intervals, <name>_interval: percentile bootstrap, whole texts drawn with replacement; NaN below two

    Raises NothingMeasured where no draft can be compared, InconsistentRecording for a trace without depth and text.
    """
    how = Bootstrap(level, resamples, seed)
    data = read(source, "trace", *_NEEDS)
    if silent := [name for name in ("depth", "text") if name not in data.attrs]:
        raise InconsistentRecording(f"This trace does not say its {', '.join(silent)}; qwenlab.speculative.trace does.")
    compared, equal = _compared(data)
    text, depth = data["text"].values, data.sizes["draft"]
    so_far = np.logical_and.accumulate(equal, axis=1)
    before = np.concatenate([compared[:, :1], compared[:, 1:] & so_far[:, :-1]], axis=1)
    rows = np.concatenate([compared, equal & compared, so_far & compared, before], axis=1)
    some = compared.any(axis=1)
    if not some.any():
        raise NothingMeasured("No draft of this trace has a place to be compared in.\nTrace longer texts.")
    labels = data["label"].values.astype(str)[text] if by_label else np.full(len(text), "")
    names = list(dict.fromkeys(labels[some].tolist()))
    clusters = [by_cluster(rows[here], text[here]) for here in (some & (labels == name) for name in names)]
    sums = np.stack([each.sum(axis=0) for each in clusters])
    ends = np.stack([how.interval(each, _rates) for each in clusters])
    group = ("label",) if by_label else ()
    say = _about(data, int(some.sum()), len(np.unique(text[some])))
    variables = {
        "chains": said(sums[:, :depth].astype(np.int64), (*group, "draft"), "chain", "chains compared", say),
        "texts": said(np.array([len(each) for each in clusters]), group, "text", "texts", say),
    }
    for place, (name, means) in enumerate(_RATES.items()):
        span = slice(place * depth, (place + 1) * depth)
        dims = (*group, "draft")
        variables |= bootstrap(name, _rates(sums)[:, span], ends[:, span], dims, "1", means, say, how)
    at: dict[str, Any] = {"draft": np.arange(1, depth + 1)} | ({"label": np.array(names, object)} if by_label else {})
    out = xr.Dataset(variables, at)
    out["draft"].attrs.update(units="1", long_name="place in the draft")
    return out.assign_attrs(say | how.attrs | {"sample": "{}"})


def _compared(data: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Of each row and draft, whether it has a place to be compared in, and whether it is the main model's choice there.

    The choice for the place of draft k of row t is made after reading up to t + k - 1: target_token of that row.
    """
    text, position = data["text"].values, data["position"].values
    drafts, target = data["draft_token"].values, data["target_token"].values
    begin, length = data["begin"].values[text], data["length"].values[text]
    last = length - (data["end"].values.astype(str)[text] == "eos")  # after an end of text nobody drafts
    compared, equal = np.zeros(drafts.shape, bool), np.zeros(drafts.shape, bool)
    rows = np.arange(len(text))
    for step in range(drafts.shape[1]):
        compared[:, step] = (position >= begin) & (position + step < last) & (drafts[:, step] >= 0)
        equal[:, step] = drafts[:, step] == target[np.minimum(rows + step, len(rows) - 1)]
    return compared, equal


def _rates(sums: np.ndarray) -> np.ndarray:
    """Agreement, unconditional and conditional, of sums [..., 4 depth]: [..., 3 depth]."""
    compared, equal, so_far, before = np.split(sums, 4, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.concatenate([equal / compared, so_far / compared, so_far / before], axis=-1)


def _about(data: xr.Dataset, chains: int, texts: int) -> dict[str, Any]:
    """What an agreement is never told without."""
    facts = {name: data.attrs[name] for name in ("depth", "text", "hidden") if name in data.attrs} | {"origin": "trace"}
    return {"rule": "greedy"} | facts | {"chains": chains, "texts": texts}
