"""What every statistic begins and ends with: the node it reads, checked, and variables that say what they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeAlias

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument, InconsistentRecording, MissingVariable, NotARecording, NothingMeasured
from qwenlab.record.recording import DECODED, PROBES, Recording
from qwenlab.stats.formulas.quantiles import shares
from qwenlab.stats.formulas.resampling import jackknife

Source: TypeAlias = Recording | xr.Dataset
P = ParamSpec("P")

Spacing = Literal["equal", "ratio", "octave"]
"""How a histogram's edges follow: equal steps, each the same multiple of the last, or 1, 1.5, 2, 3, 4, 6, ..."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles every distribution is told by."""


def statistic(function: Callable[P, xr.Dataset]) -> Callable[P, xr.Dataset]:
    """Make layers, heads and labels that differ an error, not a silent intersection, and units never inherited."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> xr.Dataset:
        with xr.set_options(arithmetic_join="exact", keep_attrs=False), np.errstate(invalid="ignore", divide="ignore"):
            out = function(*args, **kwargs)
        source = args[0] if args else kwargs.get("source", kwargs.get("sources"))
        sources = source if isinstance(source, list | tuple) else [source]
        if names := {each.checkpoint: None for each in sources if isinstance(each, Recording)}:
            out = out.assign_attrs(checkpoint=", ".join(names))
        return out.assign_attrs(statistic=function.__name__)

    return run


def read(source: Source, node: str, *needs: str, by_label: bool = True) -> xr.Dataset:
    """The Dataset of one node; labels are added up unless `by_label`.

    Raises NotWatched (the recording has no such node), NotARecording (neither a Recording nor a Dataset),
    MissingVariable and NothingMeasured (not one token was read).
    """
    data = source[node] if isinstance(source, Recording) else source
    if not isinstance(data, xr.Dataset):
        raise NotARecording(
            f"Statistics read a Recording or the Dataset of one node; this is {type(source).__name__}.\n"
            f"Give {DECODED.get(node, 'seen.recording()')}, or recording[{node!r}]."
        )
    missing = [name for name in needs if name not in data]
    if missing:
        raise MissingVariable(
            f"No {', '.join(missing)} in this Dataset; it has {', '.join(map(str, data)) or 'no variables'}.\n"
            f"Give a Recording, or the Dataset of {_made_by(node)}: recording[{node!r}]."
        )
    if "tokens" in data and not data["tokens"].sum() > 0:
        every = json.loads(data.attrs.get("sample", "{}")).get("every", 1)
        short = f", or, where texts are short, with {PROBES[node]}(every=1): it measured one token of every {every}"
        raise NothingMeasured(
            f"The {PROBES[node]} probe measured no token.\n"
            f"Run the model on some text inside the `with` of qwenlab.watch{short if every > 1 else ''}."
        )
    numbered = data.assign_coords({dim: np.arange(n) for dim, n in data.sizes.items() if dim not in data.coords})
    return numbered if by_label or "label" not in data.dims else numbered.sum("label", keep_attrs=True)


def _made_by(node: str) -> str:
    return f"its {PROBES[node]} probe" if node in PROBES else f"one made by {DECODED[node]}"


def result(data: xr.Dataset, variables: Mapping[str, xr.DataArray]) -> xr.Dataset:
    """The variables of a statistic, and what the probe left out."""
    return xr.Dataset(dict(variables), attrs={"sample": data.attrs.get("sample", "{}")})


def described(array: xr.DataArray, units: str, long_name: str, **more: object) -> xr.DataArray:
    """The array with these attrs and no others."""
    out = array.copy(deep=False)
    out.attrs = {"units": units, "long_name": long_name, **more}
    return out


def estimated(
    name: str,
    of: Callable[..., xr.DataArray],
    sums: Sequence[xr.DataArray],
    count: xr.DataArray,
    *,
    units: str,
    long_name: str,
    level: float,
    within: tuple[float, float] = (-np.inf, np.inf),
) -> dict[str, xr.DataArray]:
    """A statistic of sums over folds, and its interval: {name: ..., name_interval: ...}.

    of      makes the statistic of sums without their fold
    sums    DataArrays with the dim fold
    count   what the folds hold; empty folds have no say
    within  the values the statistic can have: the interval ends there
    """
    check_level(level)
    whole = [s.sum("fold") for s in sums]
    estimate = of(*whole)
    left_out = of(*(total - s for total, s in zip(whole, sums, strict=True)))
    interval = along(["fold"], jackknife, estimate, left_out, count > 0, out=["bound"], level=level).clip(*within)
    how = {"interval": "Student's t on the delete-one-fold jackknife", "level": level}
    return {
        name: described(estimate, units, long_name),
        f"{name}_interval": described(bounds(interval), units, f"{long_name}, interval", **how),
    }


def along(
    dims: Sequence[str], formula: Callable[..., np.ndarray], *arrays: xr.DataArray, out: Sequence[str] = (), **more: Any
) -> xr.DataArray:
    """A formula on plain arrays, applied by name: it meets `dims`, those an array has, as the last axes of each array.

    out   dims of what the formula returns, after those it was not told of
    more  what else the formula takes
    """
    core = [[dim for dim in dims if dim in array.dims] for array in arrays]
    return xr.apply_ufunc(
        formula, *arrays, input_core_dims=core, output_core_dims=[list(out)], join="exact", kwargs=more
    )


def bounds(interval: xr.DataArray) -> xr.DataArray:
    """Name the two ends of an interval along the dim `bound`."""
    return interval.assign_coords(bound=["low", "high"])


def ratio(total: xr.DataArray, count: xr.DataArray) -> xr.DataArray:
    """A mean from its sum and count; NaN where nothing was counted."""
    return total / count.where(count > 0)


def measured(count: xr.DataArray, histogram: xr.DataArray, dim: str) -> xr.DataArray:
    """The count [..., fold, layer] for the heads that have a histogram: 0 for heads that the sample left out.

    Raises InconsistentRecording where a head's histogram holds another number than the count says.
    """
    held, said = histogram.sum(dim), count.sum("fold")
    if not bool(((held == 0) | (abs(held - said) <= 1e-3 * said)).all()):
        raise InconsistentRecording(
            f"{histogram.name} holds up to {float(held.max()):,.0f} but {count.name} says {float(said.max()):,.0f}: "
            "they do not come from the same tokens.\nMake the recording again; do not edit or cut one of its variables."
        )
    return count.where(held > 0, 0)


def _edges(lower: xr.DataArray, spacing: Spacing) -> np.ndarray:
    """All edges [bin + 1] of a histogram whose coordinate holds the lower ones."""
    edges = lower.values.astype(np.float64)
    last = {"equal": 2 * edges[-1] - edges[-2], "ratio": edges[-1] ** 2 / edges[-2], "octave": 2 * edges[-2]}
    return np.append(edges, last[spacing])


def sketched(
    formula: Callable[..., np.ndarray], counts: xr.DataArray, dim: str, spacing: Spacing, q: Sequence[float]
) -> xr.DataArray:
    """Quantiles [..., quantile] of a histogram along `dim`, by one of `formulas.quantiles`."""
    wanted = np.asarray(q, np.float64)
    if wanted.ndim != 1 or not ((wanted > 0) & (wanted < 1)).all():
        raise BadArgument(f"quantiles={q!r}: give numbers between 0 and 1, both excluded, such as {QUANTILES}.")
    at = along([dim], formula, counts, out=["quantile"], edges=_edges(counts[dim], spacing), q=wanted)
    return at.assign_coords(quantile=wanted)


def share(counts: xr.DataArray, dim: str) -> xr.DataArray:
    """Counts as shares of their sum along `dim`."""
    return along([dim], shares, counts, out=[dim])


def check_level(level: float) -> None:
    """Refuse a level that is no probability."""
    if not 0 < level < 1:
        raise BadArgument(f"level={level!r}: give the probability an interval should have, such as 0.95.")
