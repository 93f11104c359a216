"""Effects of ablations and of their controls, from differences to the intact model, paired by text, task by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from qwenlab.errors import InconsistentRecording, NothingMeasured
from qwenlab.stats.base.variables import Bootstrap, variable, with_interval
from qwenlab.stats.formulas import paired
from qwenlab.stats.formulas.intervals import mean_reach, widened

ABOUT = ("of", "layer", "kind", "intervention", "control_of", "parameters")
"""Variables of a dataset of ablations that describe one ablation, besides its name."""

FACTS = ("checkpoint", "checkpoint_hash", "dtype", "device")

Meaning: TypeAlias = tuple[Sequence[str], str, str]
"""Dims, units and meaning of a variable."""


@dataclass(frozen=True)
class AblationEffects:
    """Checked differences between ablations and the intact model.

    data      the dataset of the ablations
    score     name of the compared score in that dataset
    effect    [ablation, text], positive if worse
    units     rows of ablations other than controls
    controls  for each unit, the rows of its controls
    task      task of each text;  tasks: without duplicates
    """

    data: xr.Dataset
    score: str
    effect: np.ndarray
    units: np.ndarray
    controls: tuple[np.ndarray, ...]
    task: np.ndarray
    tasks: tuple[str, ...]

    @staticmethod
    def of(data: xr.Dataset, score: str, effect: np.ndarray, task: np.ndarray) -> AblationEffects:
        """Check and group a sweep.

        Raises InconsistentRecording for controls without their ablation, and NothingMeasured without texts, ablations
        or finite numbers.
        """
        names, control_of = (data[name].values.astype(str) for name in ("ablation", "control_of"))
        units = np.flatnonzero(control_of == "")
        if not effect.shape[1] or not len(units):
            raise NothingMeasured(
                f"This sweep has {len(units)} ablations besides controls, and {effect.shape[1]} texts.\n"
                "Sweep at least one ablation over at least two texts."
            )
        if not np.isfinite(effect).all():
            row, text = np.argwhere(~np.isfinite(effect))[0]
            raise NothingMeasured(
                f"{int((~np.isfinite(effect)).sum()):,} of {effect.size:,} values of {score} are NaN or infinite, "
                f"first of {str(names[row])!r} on text {text} ({task[text]}).\n"
                "Look at what that ablation does, or leave it out."
            )
        if missing := sorted(set(control_of) - {""} - set(names[units])):
            raise InconsistentRecording(
                f"This sweep has controls of {str(missing[0])!r} but not that ablation.\nSweep both together."
            )
        controls = tuple(np.flatnonzero(control_of == name) for name in names[units])
        return AblationEffects(data, score, effect, units, controls, task, tuple(dict.fromkeys(task.tolist())))

    @property
    def controls_per_unit(self) -> np.ndarray:
        return np.array([len(rows) for rows in self.controls])


def ablation_effects(of: AblationEffects, how: Bootstrap) -> dict[str, np.ndarray]:
    """Effects, effects above controls, effects of controls, their intervals, p-values and ranks, all as [task, ...]."""
    # enough draws for p-values that survive Holm's correction
    draws = max(how.resamples, int(np.ceil(10 * len(of.units) * len(of.tasks) / (1 - how.level))))
    out = stacked([_of_task(of, name, draws, how) for name in of.tasks])
    out["p_holm"] = paired.holm(out["p"])
    out["p_beyond_holm"] = paired.holm(out["p_beyond"])
    alpha, same_sign = 1 - how.level, np.sign(out["effect_above_controls"]) == np.sign(out["effect"])
    beyond = (out["p_beyond_holm"] < alpha) & same_sign
    out["significant"] = (out["p_holm"] < alpha) & ((of.controls_per_unit == 0) | beyond)
    return out


def stacked(parts: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Stack the numbers of all tasks along a first axis: [task, ...]."""
    return {name: np.stack([np.asarray(part[name]) for part in parts]) for name in parts[0]}


def dataset_of(
    of: AblationEffects,
    values: Mapping[str, np.ndarray],
    units: str,
    means: str,
    more: Mapping[str, Meaning],
    how: Bootstrap,
) -> xr.Dataset:
    """Return the variables with their coordinates.

    values        by name, as `ablation_effects` returns them
    units, means  units and meaning of the effect
    more          dims, units and meaning of the variables that are not in every statistic of ablations
    """
    variables: dict[str, xr.DataArray] = {}
    for name, (dims, unit, meaning) in {**more, **_meanings(units, means)}.items():
        if (ends := values.get(f"{name}_interval")) is not None:
            variables |= with_interval(name, values[name], ends, dims, unit, meaning, {}, how.attrs)
        else:
            variables[name] = variable(values[name], dims, unit, meaning)
    variables["controls"] = variable(of.controls_per_unit, ("ablation",), "control", "controls")
    data, control_of = of.data, of.data["control_of"].values.astype(str)
    at: dict[str, Any] = {"task": np.array(of.tasks, object)}
    for name in ("ablation", *(name for name in ABOUT if name != "control_of")):
        at[name] = ("ablation", as_objects(data[name].values[of.units]))
    at["control"] = as_objects(data["ablation"].values[control_of != ""])
    at["control_of"] = ("control", as_objects(control_of[control_of != ""]))
    facts = {name: data.attrs[name] for name in FACTS if name in data.attrs}
    tests = {"score": of.score, "hypotheses": int(values["p"].size), "sample": "{}"}
    return xr.Dataset(variables, at).assign_attrs(facts | tests | how.attrs)


def as_objects(values: np.ndarray) -> np.ndarray:
    """Convert fixed-width text to objects; leave numbers as they are."""
    return values if values.dtype.kind in "iuf" else values.astype(object)


def _of_task(of: AblationEffects, task: str, draws: int, how: Bootstrap) -> dict[str, Any]:
    """The numbers of one task that do not depend on other tasks."""
    here = of.task == task
    effect, texts, units = of.effect[:, here], int(here.sum()), of.units
    own = np.stack([effect[rows].mean(axis=0) if len(rows) else np.full(texts, np.nan) for rows in of.controls])
    beyond = effect[units] - own
    ends = how.interval(np.concatenate([beyond, effect]).T, lambda sums: sums / texts)
    of_beyond, of_effect = np.split(ends, [len(units)])
    drawn = [effect[rows].mean(axis=1) for rows in of.controls]
    reach = np.array([mean_reach(means, how.level) for means in drawn])
    first, last = paired.rank_bounds(paired.larger(effect[units], level=how.level, draws=how.resamples, seed=how.seed))
    controls = np.flatnonzero(of.data["control_of"].values.astype(str) != "")
    return {
        "texts": texts,
        "effect": effect[units].mean(axis=1),
        "effect_interval": of_effect[units],
        "control_effect": effect[controls].mean(axis=1),
        "control_effect_interval": of_effect[controls],
        "effect_above_controls": beyond.mean(axis=1),
        "effect_above_controls_interval": widened(beyond.mean(axis=1), of_beyond, reach),
        "p": paired.flip_p(effect[units], draws=draws, seed=how.seed),
        "p_beyond": np.array([paired.beyond_p(*pair) for pair in zip(beyond, drawn, strict=True)]),
        "rank_low": first,
        "rank_high": last,
    }


def _meanings(units: str, means: str) -> dict[str, Meaning]:
    both = ("task", "ablation")
    return {
        "texts": (("task",), "text", "texts"),
        "effect": (both, units, means),
        "effect_above_controls": (both, units, f"{means}, above that of random controls"),
        "p": (both, "1", "p, by flipping the signs of texts"),
        "p_holm": (both, "1", "p, corrected for all ablations and tasks"),
        "p_beyond": (both, "1", "p of the effect above controls, by Welch's t"),
        "p_beyond_holm": (both, "1", "p of the effect above controls, corrected for all ablations and tasks"),
        "rank_low": (both, "1", "first rank that the data allow"),
        "rank_high": (both, "1", "last rank that the data allow"),
        "significant": (both, "1", "differs from 0 and exceeds the controls"),
        "control_effect": (("task", "control"), units, f"{means}, of a control"),
    }
