"""Mean score of texts, or mean of paired differences, with an interval over the texts."""

from __future__ import annotations

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument
from qwenlab.stats.base.source import statistic
from qwenlab.stats.base.variables import Bootstrap, Row, described, variables


@statistic
def mean_over_texts(
    score: xr.DataArray, *, less: xr.DataArray | None = None, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> xr.Dataset:
    """Mean over texts of a score, or of its paired difference to another score of the same texts.

    score  [..., text], such as `tasks.measure(...)["loss"]`
    less   subtracted first, text by text and dimension by dimension: the same texts in the same order

    mean           [...], in the units of the score
    mean_interval  [..., bound]: `formulas.intervals.bootstrap` over whole texts; NaN below two texts. Differences are
                   paired by text, so that the common part of two scores of a text does not add to the error
    texts          number of texts
    chance         [...], mean over texts, if the score has the coordinate `chance`; not for a difference

    Raises BadArgument for a score without the dimension text, for `less` of other texts, and for a score that is NaN.
    """
    how = Bootstrap(level, resamples, seed)
    for name, array in (("score", score), ("less", less)):
        if array is not None and not (isinstance(array, xr.DataArray) and "text" in array.dims):
            raise BadArgument(f"mean_over_texts({name}=...): give a DataArray with the dimension 'text'.")
    if less is not None and less.sizes["text"] != score.sizes["text"]:
        raise BadArgument(
            f"mean_over_texts(less=...) has {less.sizes['text']} texts, the score has {score.sizes['text']}: "
            "give scores of the same texts, in the same order."
        )
    values = (score if less is None else score - less).transpose(..., "text")
    texts, flat = values.sizes["text"], values.values.reshape(-1, values.sizes["text"]).T
    if np.isnan(flat).any():
        raise BadArgument(
            f"mean_over_texts: {int(np.isnan(flat).sum())} scores are NaN.\nLeave those texts out of all scores."
        )
    ends = how.interval(flat, lambda sums: sums / texts)
    mean = values.mean("text")
    units, meaning = str(score.attrs.get("units", "1")), str(score.attrs.get("long_name", "score"))
    meaning = meaning if less is None else f"difference of: {meaning}"
    row = Row(mean.values, [str(dim) for dim in mean.dims], units, meaning, ends.reshape(*mean.shape, 2))
    table = {"mean": row, "texts": Row(np.array(texts), (), "text", "texts")}
    out = xr.Dataset(variables(table, method=how.attrs), mean.coords)
    if less is None and "chance" in score.coords and score["chance"].notnull().any():
        chance = score["chance"].reset_coords(drop=True)
        first = chance.isel(text=0, missing_dims="ignore")
        more = (chance - first).mean([dim for dim in chance.dims if dim == "text"])
        out["chance"] = described(first + more, "1", "accuracy of guessing, mean over texts")  # exact if all equal
    return out
