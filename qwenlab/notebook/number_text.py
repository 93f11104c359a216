"""Numbers with their intervals as text, for the tables and sentences of a notebook."""

from __future__ import annotations

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument


def interval(data: xr.Dataset, name: str, format: str = ".3g") -> str:
    """One number with its interval, as text: `0.42 [0.31, 0.53]`.

    data    a statistic's Dataset, down to one number: `data[name]` [] and `data[name + "_interval"]` [bound]
    format  Python's format of each number

    Raises BadArgument for more than one number.
    """
    if data[name].size != 1:
        raise BadArgument(
            f"{name!r} has {data[name].size} numbers: select one with data.sel(...), or use ql.notebook.intervals."
        )
    return intervals(data, name, format)[0]


def intervals(data: xr.Dataset, name: str, format: str = ".3g", *, missing: str | None = None) -> list[str]:
    """Numbers with their intervals, as text: one cell for each, in the order of the dimensions of `data[name]`.

    missing  the text of a number that is NaN; None writes `nan [nan, nan]`
    """
    values, bounds = data[name], data[f"{name}_interval"]
    low, high = (bounds.sel(bound=bound).broadcast_like(values).transpose(*values.dims) for bound in ("low", "high"))
    cells = zip(values.values.ravel(), low.values.ravel(), high.values.ravel(), strict=True)
    return [
        missing if missing is not None and np.isnan(value) else f"{value:{format}} [{start:{format}}, {end:{format}}]"
        for value, start, end in cells
    ]
