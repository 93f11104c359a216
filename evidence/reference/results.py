"""Results of any kind as one flat dict of arrays and texts, and its file."""

from __future__ import annotations

import dataclasses
import pickle
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

Flat = dict[str, np.ndarray | str]
"""Path -> value: "recording/deltanet/beta_sum" is a variable; with " dims" or " @units" after it, its dims, attrs."""

Cases = Iterator[tuple[str, Callable[[], Any]]]
"""Names of cases, and what computes their results."""

EXCEPTED = {
    *("created", "began", "commit", "source", "folder", "peak_memory", "exit"),
    *("python", "qwenlab", "torch", "transformers", "numpy", "xarray", "flash_linear_attention", "triton"),
}
"""Attributes and columns about when, where and with which versions a result was made: not compared."""

CLOCKED = {
    *("seconds", "model_seconds", "probe_seconds", "clock_cost_seconds"),
    *("time_share", "layer_share", "part_share", "kind_share", "clock_share"),
    *("seconds_per_token", "kind_seconds_per_token"),
    *(
        f"{step}{of}"
        for step in ("plain_step", "verify_step", "draft_step", "rollback", "overhead")
        for of in ("", "_quantiles")
    ),
}
"""Variables and attributes with measured times, in results that are `Timed`: only dtype and shape are compared."""

_TEMPORARY = re.compile(re.escape(tempfile.gettempdir()) + r"/\w+")


@dataclasses.dataclass
class Timed:
    """A result that holds measured times."""

    value: Any


def save(flat: Flat, file: Path) -> None:
    """Write the result of a case."""
    file.write_bytes(pickle.dumps(flat))


def load(file: Path) -> Flat:
    """Read the result of a case, which this script wrote."""
    found: Flat = pickle.loads(file.read_bytes())
    return found


def flattened(result: Any) -> Flat:
    """A result as a flat dict: recordings, Datasets, tables, tensors, dataclasses, and collections of these."""
    return {path.strip("/ "): value for path, value in _items("", result, False)}


def _items(path: str, value: Any, timed: bool) -> Iterator[tuple[str, np.ndarray | str]]:
    if isinstance(value, Timed):
        yield from _items(path, value.value, True)
    elif _name(path) in EXCEPTED:
        return
    elif isinstance(getattr(value, "tree", None), xr.DataTree):  # a Recording
        for node in value.tree.subtree:
            yield from _items(f"{path}{node.path.rstrip('/')}", node.to_dataset(inherit=False), timed)
    elif isinstance(value, xr.Dataset | xr.DataArray):
        yield from _labelled(path, value, timed)
    elif isinstance(value, pd.DataFrame):
        yield from _items(path, {str(column): value[column].to_numpy() for column in value}, timed)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _items(f"{path}/{key}", each, timed)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _items(path, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, timed)
    elif isinstance(value, list | tuple) and not _numbers(value):
        for number, each in enumerate(value):
            yield from _items(f"{path}/{number}", each, timed)
    else:
        yield path, _value(value, timed and _name(path) in CLOCKED)


def _labelled(path: str, data: xr.Dataset | xr.DataArray, timed: bool) -> Iterator[tuple[str, np.ndarray | str]]:
    dataset = data.to_dataset(name=data.name or "values") if isinstance(data, xr.DataArray) else data
    for key, attr in dataset.attrs.items():
        yield from _items(f"{path} @{key}", attr, timed)
    for name, variable in dataset.variables.items():
        yield from _items(f"{path}/{name}", variable.values, timed)
        yield f"{path}/{name} dims", " ".join(map(str, variable.dims))
        for key, attr in variable.attrs.items():
            yield from _items(f"{path}/{name} @{key}", attr, timed)
    yield f"{path} coords", " ".join(sorted(map(str, dataset.coords)))


def _name(path: str) -> str:
    return path.rpartition("/")[2].rpartition("@")[2]


def _numbers(value: Any) -> bool:
    return all(isinstance(each, int | float) for each in value) and len(value) > 0


def _value(value: Any, clocked: bool) -> np.ndarray | str:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.view(torch.int16).numpy() if value.dtype is torch.bfloat16 else value.numpy()
    if isinstance(value, bool | int | float | np.generic | np.ndarray) or _is_list(value):
        array = np.asarray(value)
        array = (
            np.array([str(each) for each in array.ravel()]).reshape(array.shape) if array.dtype.kind in "OT" else array
        )
        return f"{array.dtype} {array.shape}" if clocked else array
    return _TEMPORARY.sub("TEMPORARY", str(value))


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and _numbers(value)
