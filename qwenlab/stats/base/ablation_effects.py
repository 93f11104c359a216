"""Effects of ablations and of their controls, from differences to the intact model, paired by text, task by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from qwenlab.errors import InconsistentRecording, NothingMeasured
from qwenlab.stats.base.variables import Bootstrap, Row, variables
from qwenlab.stats.formulas import paired
from qwenlab.stats.formulas.intervals import mean_reach, widened

ABOUT = ("unit", "layer", "kind", "intervention", "control_of", "parameters")
"""Variables of a dataset of ablations that describe one ablation, besides its name."""

FACTS = ("checkpoint", "checkpoint_hash", "dtype", "device")

Meaning: TypeAlias = tuple[Sequence[str], str, str]
"""Dims, units and meaning of a variable."""


@dataclass(frozen=True)
class AblationEffects:
    """Checked differences between ablations and the intact model."""

    data: xr.Dataset
    score: str
    effect: np.ndarray  # [ablation, text], positive if worse
    ablated: np.ndarray  # rows of ablations other than controls
    controls: tuple[np.ndarray, ...]  # for each of these, the rows of its controls
    task: np.ndarray  # of each text
    tasks: tuple[str, ...]

    @staticmethod
    def of(data: xr.Dataset, score: str, effect: np.ndarray, task: np.ndarray) -> AblationEffects:
        """Check and group a sweep; raises InconsistentRecording and NothingMeasured."""
        names, control_of = (data[name].values.astype(str) for name in ("ablation", "control_of"))
        ablated = np.flatnonzero(control_of == "")
        if not effect.shape[1] or not len(ablated):
            raise NothingMeasured(
                f"This sweep has {len(ablated)} ablations besides controls, and {effect.shape[1]} texts.\n"
                "Sweep at least one ablation over at least two texts."
            )
        if not np.isfinite(effect).all():
            row, text = np.argwhere(~np.isfinite(effect))[0]
            raise NothingMeasured(
                f"{int((~np.isfinite(effect)).sum()):,} of {effect.size:,} values of {score} are NaN or infinite, "
                f"first of {str(names[row])!r} on text {text} ({task[text]}).\n"
                "Look at what that ablation does, or leave it out."
            )
        if missing := sorted(set(control_of) - {""} - set(names[ablated])):
            raise InconsistentRecording(
                f"This sweep has controls of {str(missing[0])!r} but not that ablation.\nSweep both together."
            )
        controls = tuple(np.flatnonzero(control_of == name) for name in names[ablated])
        return AblationEffects(data, score, effect, ablated, controls, task, tuple(dict.fromkeys(task.tolist())))


def ablation_effects(
    of: AblationEffects,
    own: Callable[[np.ndarray], Mapping[str, Any]],
    units: str,
    means: str,
    more: Mapping[str, Meaning],
    how: Bootstrap,
) -> xr.Dataset:
    """Effects, effects above controls, effects of controls, their intervals, p-values and ranks, by task.

    own           computes further numbers of a task, from a bool [text] that says which texts are of it
    units, means  units and meaning of the effect;  more: those of the further numbers
    """
    # enough draws for p-values that survive Holm's correction
    draws = max(how.resamples, int(np.ceil(10 * len(of.ablated) * len(of.tasks) / (1 - how.level))))
    parts = [_of_task(of, of.task == name, draws, how) | dict(own(of.task == name)) for name in of.tasks]
    values = {name: np.stack([np.asarray(part[name]) for part in parts]) for name in parts[0]}
    values |= {f"{name}_holm": paired.holm(values[name]) for name in ("p", "p_above_controls")}
    alpha, same_sign = 1 - how.level, np.sign(values["effect_above_controls"]) == np.sign(values["effect"])
    controls = np.array([len(rows) for rows in of.controls])
    beyond = (values["p_above_controls_holm"] < alpha) & same_sign
    values["significant"] = (values["p_holm"] < alpha) & ((controls == 0) | beyond)
    meanings = {**more, **_meanings(units, means)}
    table = {name: Row(values[name], *about, values.get(f"{name}_interval")) for name, about in meanings.items()}
    table["controls"] = Row(controls, ("ablation",), "control", "controls")
    data, control_of = of.data, of.data["control_of"].values.astype(str)
    at: dict[str, Any] = {"task": np.array(of.tasks, object)}
    for name in ("ablation", *(name for name in ABOUT if name != "control_of")):
        at[name] = ("ablation", as_objects(data[name].values[of.ablated]))
    at["control"] = as_objects(data["ablation"].values[control_of != ""])
    at["control_of"] = ("control", as_objects(control_of[control_of != ""]))
    facts = {name: data.attrs[name] for name in FACTS if name in data.attrs}
    tests = {"score": of.score, "hypotheses": int(values["p"].size), "sample": "{}"}
    return xr.Dataset(variables(table, method=how.attrs), at, facts | tests | how.attrs)


def as_objects(values: np.ndarray) -> np.ndarray:
    """Convert fixed-width text to objects; leave numbers as they are."""
    return values if values.dtype.kind in "iuf" else values.astype(object)


def _of_task(of: AblationEffects, here: np.ndarray, draws: int, how: Bootstrap) -> dict[str, Any]:
    effect, texts, ablated = of.effect[:, here], int(here.sum()), of.ablated
    own = np.stack([effect[rows].mean(axis=0) if len(rows) else np.full(texts, np.nan) for rows in of.controls])
    beyond = effect[ablated] - own
    ends = how.interval(np.concatenate([beyond, effect]).T, lambda sums: sums / texts)
    of_beyond, of_effect = np.split(ends, [len(ablated)])
    drawn = [effect[rows].mean(axis=1) for rows in of.controls]
    reach = np.array([mean_reach(means, how.level) for means in drawn])
    larger = paired.larger(effect[ablated], level=how.level, draws=how.resamples, seed=how.seed)
    first, last = paired.rank_bounds(larger)
    controls = np.flatnonzero(of.data["control_of"].values.astype(str) != "")
    return {
        "texts": texts,
        "effect": effect[ablated].mean(axis=1),
        "effect_interval": of_effect[ablated],
        "control_effect": effect[controls].mean(axis=1),
        "control_effect_interval": of_effect[controls],
        "effect_above_controls": beyond.mean(axis=1),
        "effect_above_controls_interval": widened(beyond.mean(axis=1), of_beyond, reach),
        "p": paired.flip_p(effect[ablated], draws=draws, seed=how.seed),
        "p_above_controls": np.array([paired.welch_p(*pair) for pair in zip(beyond, drawn, strict=True)]),
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
        "p_above_controls": (both, "1", "p of the effect above controls, by Welch's t"),
        "p_above_controls_holm": (both, "1", "p of the effect above controls, corrected for all ablations and tasks"),
        "rank_low": (both, "1", "first rank that the data allow"),
        "rank_high": (both, "1", "last rank that the data allow"),
        "significant": (both, "1", "differs from 0 and exceeds the controls"),
        "control_effect": (("task", "control"), units, f"{means}, of a control"),
    }
