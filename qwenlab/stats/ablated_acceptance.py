"""Effects of ablations on the acceptance length, compared with random controls, with simultaneous ranks."""

from __future__ import annotations

import numpy as np
import xarray as xr

from qwenlab.errors import NothingMeasured
from qwenlab.stats.base.ablation_effects import ABOUT, AblationEffects, Meaning, ablation_effects, dataset_of, stacked
from qwenlab.stats.base.rounds import FACTS
from qwenlab.stats.base.source import Source, read, statistic
from qwenlab.stats.base.variables import Bootstrap

_NEEDS = ("acceptance_length", "clean_acceptance_length", "label", *ABOUT)
_OF_CLEAN: dict[str, Meaning] = {
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
    ablations. Raises BadArgument, MissingVariable, InconsistentRecording for controls without their ablation, and
    NothingMeasured where no text of a label is left.
    """
    how = Bootstrap(level, resamples, seed)
    data = read(source, "ablated_acceptance", *_NEEDS)
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
    values = ablation_effects(sweep, how)
    values |= stacked([_of_clean(sweep, name, clean[known], how) for name in sweep.tasks])
    values["left_out"] = np.array([(~known[task == name]).sum() for name in sweep.tasks])
    facts = {name: data.attrs[name] for name in FACTS if name in data.attrs}
    return dataset_of(sweep, values, "token", "fall of the acceptance length", _OF_CLEAN, how).assign_attrs(facts)


def _of_clean(sweep: AblationEffects, task: str, clean: np.ndarray, how: Bootstrap) -> dict[str, np.ndarray]:
    """The intact model's acceptance length on one task."""
    here = sweep.task == task
    values = clean[here]
    (interval,) = how.interval(values[:, None], lambda sums: sums / len(values))
    return {"clean_acceptance_length": values.mean(), "clean_acceptance_length_interval": interval}
