"""Scores of texts: their mean, or that of paired differences, with an interval over the texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument
from qwenlab.stats.base.rounds import Bootstrap
from qwenlab.stats.base.source import bounds, described, statistic
from qwenlab.stats.formulas.paired import expanded_level


@statistic
def over_texts(
    score: xr.DataArray,
    *,
    less: xr.DataArray | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> xr.Dataset:
    """The mean over texts of a score, or of how far it is above another score of the same texts.

    score  [..., text], such as `tasks.measure(...)["loss"]`
    less   what to take from it first, text by text and dimension by dimension: the same texts in the same order

    mean           [...], in the units of the score
    mean_interval  [..., bound]: percentile bootstrap, whole texts drawn with replacement, expanded for few texts
                   (`formulas.paired.expanded_level`); NaN below two texts. Of a handful it is too short all the same:
                   it cannot reach beyond the texts' own values. A difference is made before texts are drawn, so that
                   what a text does to both scores is no part of its error
    texts          how many
    chance         [...], if the score has it as a coordinate, as that of `tasks.measure` has; not of a difference

    Raises BadArgument for a score without the dimension text, for `less` of other texts, and for a score that is NaN.
    """
    how = Bootstrap(level, resamples, seed, "texts")
    for name, each in (("score", score), ("less", less)):
        if each is not None and not (isinstance(each, xr.DataArray) and "text" in each.dims):
            raise BadArgument(f"over_texts({name}=...): give a DataArray with the dimension 'text', one value a text.")
    if less is not None and less.sizes["text"] != score.sizes["text"]:
        raise BadArgument(
            f"over_texts(less=...) is of {less.sizes['text']} texts, the score of {score.sizes['text']}: "
            "give scores of the same texts, in the same order."
        )
    values = (score if less is None else score - less).transpose(..., "text")
    texts, flat = values.sizes["text"], values.values.reshape(-1, values.sizes["text"]).T
    if np.isnan(flat).any():
        raise BadArgument(
            f"over_texts: {int(np.isnan(flat).sum())} scores are NaN.\nLeave those texts out of all scores."
        )
    expanded = replace(how, level=expanded_level(level, texts))
    ends = expanded.interval(
        np.concatenate([np.ones((texts, 1)), flat], axis=1), lambda sums: sums[..., 1:] / sums[..., :1]
    )
    mean = values.mean("text")
    interval = mean.expand_dims(bound=2, axis=-1).copy(data=ends.reshape(*mean.shape, 2))
    units, means = str(score.attrs.get("units", "1")), str(score.attrs.get("long_name", "score"))
    means = means if less is None else f"difference of: {means}"
    out = xr.Dataset(
        {
            "mean": described(mean, units, means),
            "mean_interval": bounds(described(interval, units, f"{means}, interval", **how.attrs)),
            "texts": described(xr.DataArray(texts), "text", "texts"),
        }
    )
    if less is None and "chance" in score.coords and score["chance"].notnull().any():
        chance = score["chance"].reset_coords(drop=True)
        first = chance.isel(text=0, missing_dims="ignore")
        more = (chance - first).mean([dim for dim in chance.dims if dim == "text"])
        out["chance"] = described(first + more, "1", "accuracy of guessing, mean over texts")  # exact if all are equal
    return out
