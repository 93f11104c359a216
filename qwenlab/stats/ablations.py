"""Effects of ablations on scores, by task, compared with random controls."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import xarray as xr

from qwenlab.arguments import choice
from qwenlab.errors import InconsistentRecording
from qwenlab.stats.base.ablation_effects import ABOUT, AblationEffects, Meaning, ablation_effects
from qwenlab.stats.base.source import Source, read, statistic
from qwenlab.stats.base.variables import Bootstrap
from qwenlab.stats.score import Score

_EFFECT: dict[str, tuple[str, str]] = {
    "loss": ("nat/token", "rise of the loss"),
    "accuracy": ("1", "fall of the accuracy"),
    "kl": ("nat/token", "KL divergence from the intact model"),
    "agreement": ("1", "share of first choices that change"),
}
_NEEDS = ("clean_loss", "clean_accuracy", "chance", "task", *ABOUT)
_OF_CLEAN: dict[str, Meaning] = {
    "clean_loss": (("task",), "nat/token", "loss of the intact model"),
    "clean_accuracy": (("task",), "1", "accuracy of the intact model"),
    "chance": (("task",), "1", "accuracy by chance"),
    "above_chance": (("task",), "1", "accuracy of the intact model above chance"),
    "at_chance": (("task",), "1", "accuracy of the intact model is not significantly above chance"),
}
_SHARE_LOST: dict[str, Meaning] = {"share_lost": (("task", "ablation"), "1", "share lost of the accuracy above chance")}


@statistic
def ablations(
    source: Source, *, score: Score = "loss", level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> xr.Dataset:
    """Effect of each ablation of a sweep on a score, by [task, ablation], compared with its controls.

    effect           mean over texts of the difference from the intact model on the same text, positive if worse:
                     loss - clean, clean - accuracy, kl, 1 - agreement
    effect_above_controls   effect minus the mean effect of its own controls, paired by text; NaN without controls, and
                     no interval for one control: at least two are needed to know how controls differ
    p, p_holm        two-sided, by flipping the signs of whole texts (`formulas.paired.flip_p`): exact for differences
                     that are symmetric about 0; p_holm is corrected over all ablations and tasks (Holm 1979)
    p_above_controls, p_above_controls_holm   the same of effect_above_controls, by Welch's t; NaN below two controls
    rank_low, rank_high   the ranks by effect within the task that the data allow, 1 the most harmful: simultaneous over
                     all pairs of the task (`formulas.paired.rank_bounds`, Mogstad et al. 2024), so that ties stay ties
    significant      p_holm < 1 - level and, with controls, p_above_controls_holm < 1 - level with the sign of the
                     effect. The probability that any ablation without an effect is significant is at most 1 - level
    share_lost       score="accuracy" only: effect / (clean accuracy - chance); NaN where chance is not known or reached

    By [task]: texts; clean_loss and clean_accuracy of the intact model; chance; above_chance, clean accuracy minus
    chance; at_chance, whether its interval includes 0 or less, so that there is nothing to lose. By [ablation]:
    controls, their number. By [task, control]: control_effect, as effect; control_of names each control's ablation.

    level  of the intervals, <name>_interval: `formulas.intervals.bootstrap` over whole texts, the same draws for all
           ablations; NaN below two texts. Student's error of the mean of the controls is added, because a bootstrap
           of two or three never leaves their range. With 2 to 8 controls at 0.95, intervals of effect_above_controls
           covered 0.94 to 0.99 in simulation

    A KL divergence is never below 0, nor is a share of changes: compare them with the controls, not with 0.

    Raises BadArgument, InconsistentRecording for controls without their ablation or several chances in a task, and
    NothingMeasured without texts or ablations, or where a score is NaN or infinite.
    """
    how = Bootstrap(level, resamples, seed)
    choice("stats.ablations", "score", score, get_args(Score))
    data = read(source, "ablations", *dict.fromkeys([score, *_NEEDS]))
    sweep = AblationEffects.of(data, score, _effect(data, score), data["task"].values.astype(str))
    for name in sweep.tasks:
        if len(chances := np.unique(data["chance"].values[sweep.task == name])) > 1:
            raise InconsistentRecording(
                f"Task {name!r} has more than one chance level: {chances.tolist()}.\nGive each level its own task."
            )
    more = _OF_CLEAN | (_SHARE_LOST if score == "accuracy" else {})
    return ablation_effects(sweep, lambda here: _of_clean(sweep, here, how), *_EFFECT[score], more, how)


def _effect(data: xr.Dataset, score: str) -> np.ndarray:
    values = data[score].transpose("ablation", "text").values.astype(np.float64)
    if score == "loss":
        return np.asarray(values - data["clean_loss"].values)
    if score == "accuracy":
        return np.asarray(data["clean_accuracy"].values - values)
    return np.asarray(values if score == "kl" else 1 - values)


def _of_clean(sweep: AblationEffects, here: np.ndarray, how: Bootstrap) -> dict[str, Any]:
    """Scores of the intact model on one task and, for accuracy, the share of it that is lost."""
    clean, chance = (sweep.data[name].values[here] for name in ("clean_accuracy", "chance"))
    above, texts = clean - chance, int(here.sum())
    (interval,) = how.interval(above[:, None], lambda sums: sums / texts)
    at_chance = above.mean() <= 0 or interval[0] <= 0
    values = {
        "clean_loss": sweep.data["clean_loss"].values[here].mean(),
        "clean_accuracy": clean.mean(),
        "chance": chance[0],
        "above_chance": above.mean(),
        "above_chance_interval": interval,
        "at_chance": at_chance,
    }
    if sweep.score == "accuracy":
        effect = sweep.effect[sweep.ablated][:, here]
        ratio = how.interval(np.concatenate([effect, above[None]]).T, lambda sums: sums[..., :-1] / sums[..., -1:])
        values["share_lost"] = np.where(at_chance, np.nan, effect.mean(axis=1) / above.mean())
        values["share_lost_interval"] = np.where(at_chance, np.nan, ratio)
    return values
