"""What ablations cost in accepted drafts, beyond what random controls do, with honest ranks."""

from __future__ import annotations

import numpy as np
import xarray as xr

from qwenlab.errors import NothingMeasured
from qwenlab.stats.base.harm import ABOUT, DRAWN, Harms, Meaning, harms, stacked, told
from qwenlab.stats.base.rounds import Bootstrap
from qwenlab.stats.base.source import Source, read, statistic

_SAID = ("rule", "depth", "policy", "text", "origin")
_NEEDS = ("acceptance_length", "clean_acceptance_length", "label", *ABOUT)
_OF_CLEAN: dict[str, Meaning] = {
    "clean_acceptance_length": (("task",), "token", "acceptance length of the unedited model"),
    "left_out": (("task",), "text", "texts of no round under some ablation, left out"),
}


@statistic
def ablated_acceptance(
    source: Source, *, by_label: bool = True, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> xr.Dataset:
    """By how much each ablation shortens the acceptance length of the MTP head's drafts, by [task, ablation].

    harm  mean over texts of clean_acceptance_length - acceptance_length on the same text, tokens a round: positive
          where fewer drafts stand

    The other variables, how intervals, p and ranks are made, and what `stands` takes are those of `stats.ablations`,
    whose table, findings and map take these statistics too. A label of texts stands for a task; with by_label=False all
    texts are one.

    By [task]: texts; clean_acceptance_length, the mean over texts for the unedited model; left_out, texts for which
    some ablation, or the unedited model, has no round: they are paired with nothing, and no ablation is scored on them.

    Attrs say the rule, the depth and the text: in the edited model's own text (text="own") every ablation has another
    one. Raises BadArgument, MissingVariable, InconsistentRecording for controls of nothing, and NothingMeasured where
    no text is left of a label.
    """
    how = Bootstrap(level, resamples, seed, DRAWN)
    data = read(source, "ablated_acceptance", *_NEEDS)
    lengths = data["acceptance_length"].transpose("ablation", "text").values.astype(np.float64)
    clean = data["clean_acceptance_length"].values.astype(np.float64)
    task = data["label"].values.astype(str) if by_label else np.full(len(clean), "all texts")
    known = ~np.isnan(clean) & ~np.isnan(lengths).any(axis=0)
    if lost := [name for name in dict.fromkeys(task.tolist()) if not known[task == name].any()]:
        raise NothingMeasured(
            f"Each text of {lost[0]!r} has no round under some ablation, or none at all.\n"
            "Give longer texts, or leave out what makes the model end at once."
        )
    sweep = Harms.of(data, "acceptance_length", (clean - lengths)[:, known], task[known])
    found = harms(sweep, how)
    found |= stacked([_of_clean(sweep, name, clean[known], how) for name in sweep.tasks])
    found["left_out"] = np.array([(~known[task == name]).sum() for name in sweep.tasks])
    facts = {name: data.attrs[name] for name in _SAID if name in data.attrs}
    return told(sweep, found, "token", "fall of the acceptance length", _OF_CLEAN, how).assign_attrs(facts)


def _of_clean(sweep: Harms, task: str, clean: np.ndarray, how: Bootstrap) -> dict[str, np.ndarray]:
    """The unedited model's acceptance length on one task."""
    here, expanded = sweep.in_task(task, how)
    values = clean[here]
    (interval,) = expanded.interval(values[:, None], lambda sums: sums / len(values))
    return {"clean_acceptance_length": values.mean(), "clean_acceptance_length_interval": interval}
