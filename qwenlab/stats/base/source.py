"""Read and check the input of a statistic: one node of a recording."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeAlias

import numpy as np
import xarray as xr

from qwenlab.errors import MissingVariable, NotARecording, NothingMeasured
from qwenlab.record.recording import DECODED, PROBES, Recording

Source: TypeAlias = Recording | xr.Dataset
P = ParamSpec("P")

RECORD_AGAIN = "Make the recording again; do not edit or cut one of its variables."
"""Last sentence of messages about recordings whose variables contradict each other."""


def statistic(function: Callable[P, xr.Dataset]) -> Callable[P, xr.Dataset]:
    """Decorate a public statistic: layers, heads and labels must match exactly, and units are never inherited.

    The result has the attrs `statistic`, its name, and `checkpoint`, that of its recordings.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> xr.Dataset:
        with xr.set_options(arithmetic_join="exact", keep_attrs=False), np.errstate(invalid="ignore", divide="ignore"):
            out = function(*args, **kwargs)
        source = args[0] if args else kwargs.get("source", kwargs.get("sources"))
        sources = source if isinstance(source, list | tuple) else [source]
        if names := {data.checkpoint: None for data in sources if isinstance(data, Recording)}:
            out = out.assign_attrs(checkpoint=", ".join(names))
        return out.assign_attrs(statistic=function.__name__)

    return run


def read(source: Source, node: str, *needs: str, by_label: bool = True) -> xr.Dataset:
    """Return the Dataset of one node; labels are added up unless `by_label`.

    Raises ProbeNotRecorded, NotARecording, MissingVariable, and NothingMeasured if no token was read.
    """
    data = source[node] if isinstance(source, Recording) else source
    if not isinstance(data, xr.Dataset):
        raise NotARecording(
            f"Statistics read a Recording or the Dataset of one node; this is {type(source).__name__}.\n"
            f"Give {DECODED.get(node, 'seen.recording()')}, or recording[{node!r}]."
        )
    missing = [name for name in needs if name not in data]
    if missing:
        maker = f"its {PROBES[node]} probe" if node in PROBES else f"one made by {DECODED[node]}"
        raise MissingVariable(
            f"No {', '.join(missing)} in this Dataset; it has {', '.join(map(str, data)) or 'no variables'}.\n"
            f"Give a Recording, or the Dataset of {maker}: recording[{node!r}]."
        )
    if "tokens" in data and not data["tokens"].sum() > 0:
        every = json.loads(data.attrs.get("sample", "{}")).get("every", 1)
        short = f", or, if texts are short, with {PROBES[node]}(every=1): it measured one token of every {every}"
        raise NothingMeasured(
            f"The {PROBES[node]} probe measured no token.\n"
            f"Run the model on some text inside the `with` of qwenlab.watch{short if every > 1 else ''}."
        )
    numbered = data.assign_coords({dim: np.arange(n) for dim, n in data.sizes.items() if dim not in data.coords})
    return numbered if by_label or "label" not in data.dims else numbered.sum("label", keep_attrs=True)


def mixer_nodes(source: Source, names: tuple[str, str], marker: str) -> list[str]:
    """Names of the nodes of DeltaNet and attention to read; a Dataset with the variable `marker` is of attention."""
    if isinstance(source, Recording):
        return [name for name in names if name in source] or [names[0]]
    return [names[marker in source]]


def along(
    dims: Sequence[str], formula: Callable[..., np.ndarray], *arrays: xr.DataArray, out: Sequence[str] = (), **more: Any
) -> xr.DataArray:
    """Apply a formula for arrays whose last axes are those of `dims` that they have; it adds the dims `out`."""
    core = [[dim for dim in dims if dim in array.dims] for array in arrays]
    return xr.apply_ufunc(
        formula, *arrays, input_core_dims=core, output_core_dims=[list(out)], join="exact", kwargs=more
    )


def ratio(total: xr.DataArray, count: xr.DataArray) -> xr.DataArray:
    """Divide a sum by its count; NaN where nothing was counted."""
    return total / count.where(count > 0)
