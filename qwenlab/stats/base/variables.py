"""Build the variables of a result: values with units, meaning and intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument
from qwenlab.stats.formulas import intervals

Variables: TypeAlias = dict[str, xr.DataArray]


def described(array: xr.DataArray, units: str, long_name: str, **more: object) -> xr.DataArray:
    """Return the array with these attrs and no others."""
    out = array.copy(deep=False)
    out.attrs = {"units": units, "long_name": long_name, **more}
    return out


class Row(NamedTuple):
    """A variable as plain values, and the ends [..., bound] of its interval, if it has one."""

    values: Any
    dims: Sequence[str]
    units: str
    long_name: str
    ends: np.ndarray | None = None


def variable(
    values: Any, dims: Sequence[str], units: str, long_name: str, facts: Mapping[str, Any] | None = None
) -> xr.DataArray:
    """Describe an array of plain values; a leading axis that dims do not name has size one and is dropped."""
    array = xr.DataArray(values if np.ndim(values) == len(dims) else values[0], dims=dims)
    return described(array, units, long_name, **(facts or {}))


def variables(
    table: Mapping[str, Row], facts: Mapping[str, Any] | None = None, method: Mapping[str, Any] | None = None
) -> Variables:
    """Describe the rows of a table: {name: ...}, and {name_interval: ...} for those with an interval.

    `facts` are attrs of all variables, `method` those of intervals.
    """
    out: Variables = {}
    for name, (values, dims, units, long_name, ends) in table.items():
        out[name] = variable(values, dims, units, long_name, facts)
        if ends is not None:
            about = {**(facts or {}), **(method or {})}
            interval = variable(ends, (*dims, "bound"), units, f"{long_name}, interval", about)
            out[f"{name}_interval"] = bounds(interval)
    return out


def bounds(interval: xr.DataArray) -> xr.DataArray:
    """Name the two ends of an interval along the dim `bound`."""
    return interval.assign_coords(bound=["low", "high"])


def result(data: xr.Dataset, variables: Mapping[str, xr.DataArray]) -> xr.Dataset:
    """Return the variables of a statistic as a Dataset, with the attr `sample` of its probe."""
    return xr.Dataset(dict(variables), attrs={"sample": data.attrs.get("sample", "{}")})


def check_level(level: float) -> None:
    """Raise BadArgument for a level outside 0 to 1."""
    if not 0 < level < 1:
        raise BadArgument(f"level={level!r}: give the coverage probability of the intervals, such as 0.95.")


def jackknife_method(level: float, left_out: str) -> dict[str, Any]:
    """Attrs of an interval by `formulas.intervals.jackknife`; raises BadArgument."""
    check_level(level)
    return {"interval": f"Student's t on the delete-one-{left_out} jackknife", "level": level}


def share_method(level: float, cluster: str) -> dict[str, Any]:
    """Attrs of an interval by `formulas.intervals.share`; raises BadArgument."""
    check_level(level)
    construction = f"Wilson's score at the effective sample size, by the delete-one-{cluster} jackknife"
    return {"interval": construction, "level": level}


@dataclass(frozen=True)
class Bootstrap:
    """Settings of `formulas.intervals.bootstrap` over whole texts, or other clusters; raises BadArgument."""

    level: float
    resamples: int
    seed: int
    clusters: str = "texts"

    def __post_init__(self) -> None:
        check_level(self.level)
        if self.resamples < 1:
            raise BadArgument(f"resamples={self.resamples!r}: give the number of bootstrap draws, such as 2000.")

    def interval(self, sums: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Low and high [value, bound] of a statistic `of` sums [cluster, column]."""
        return intervals.bootstrap(sums, of, level=self.level, resamples=self.resamples, seed=self.seed)

    @property
    def attrs(self) -> dict[str, Any]:
        construction = f"bootstrap of whole {self.clusters}, expanded percentiles"
        return {"interval": construction, "level": self.level, "resamples": self.resamples, "seed": self.seed}
