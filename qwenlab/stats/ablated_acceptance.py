"""Effects of ablations on the acceptance length of drafts."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from qwenlab.errors import NothingMeasured
from qwenlab.stats.base.ablation_effects import ABOUT, AblationEffects, Meaning, ablation_effects
from qwenlab.stats.base.rounds import FACTS
from qwenlab.stats.base.source import Source, read, statistic
from qwenlab.stats.base.variables import Bootstrap

_NEEDS_LENGTHS = ("acceptance_length", "clean_acceptance_length", "label", *ABOUT)


_OF_LENGTHS: dict[str, Meaning] = {
    "clean_acceptance_length": (("task",), "token", "acceptance length of the intact model"),
    "left_out": (("task",), "text", "texts without a round under some ablation, left out"),
}


@statistic
def ablated_acceptance(
    source: Source, *, by_label: bool = True, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> xr.Dataset:
    """Effect of each ablation on the acceptance length of the draft head, by [task, ablation].

    effect  mean over texts of clean_acceptance_length - acceptance_length on the same text, tokens per round: positive
            where fewer drafts are accepted

    The other variables, intervals, p, ranks and `significant` are as in `stats.ablations`; its table, findings and
    plots take these statistics too. Each label of texts is a task; with by_label=False all texts are one task.

    By [task]: texts; clean_acceptance_length, the mean over texts for the intact model; left_out, texts for which
    some ablation, or the intact model, has no round: no ablation is scored on them.

    Attrs hold the rule, the depth and the text: in the ablated model's own text (text="own"), the text differs between
    ablations. Raises NothingMeasured where no text of a label is left, else as `ablations`.
    """
    how = Bootstrap(level, resamples, seed)
    data = read(source, "ablated_acceptance", *_NEEDS_LENGTHS)
    lengths = data["acceptance_length"].transpose("ablation", "text").values.astype(np.float64)
    clean = data["clean_acceptance_length"].values.astype(np.float64)
    task = data["label"].values.astype(str) if by_label else np.full(len(clean), "all texts")
    known = ~np.isnan(clean) & ~np.isnan(lengths).any(axis=0)
    if empty := [name for name in dict.fromkeys(task.tolist()) if not known[task == name].any()]:
        raise NothingMeasured(
            f"Each text of {empty[0]!r} has no round under some ablation, or under the intact model.\n"
            "Give longer texts, or leave out ablations under which the model ends at once."
        )
    sweep = AblationEffects.of(data, "acceptance_length", (clean - lengths)[:, known], task[known])

    def of_clean(here: np.ndarray) -> dict[str, Any]:
        lengths, (name, *_) = clean[known][here], sweep.task[here]
        (interval,) = how.interval(lengths[:, None], lambda sums: sums / len(lengths))
        return {
            "clean_acceptance_length": lengths.mean(),
            "clean_acceptance_length_interval": interval,
            "left_out": (~known[task == name]).sum(),
        }

    facts = {name: data.attrs[name] for name in FACTS if name in data.attrs}
    meaning = "fall of the acceptance length"
    return ablation_effects(sweep, of_clean, "token", meaning, _OF_LENGTHS, how).assign_attrs(facts)
