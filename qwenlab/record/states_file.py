"""`StatesFile`: write the states of a model to a NetCDF file while it runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import h5netcdf
import h5py
import numpy as np

from qwenlab.record.whole_files import replacing

_TEXT = h5py.string_dtype()


class StatesFile:
    """A NetCDF file that grows: `state` [token, layer, head, key_channel, channel], float32; at `path` when complete.

    size  key channels and channels per head

    Each state has the index of its `sequence`, and the `position` and `label` of its token, in the order of writing.
    `xarray.open_dataset(path)` reads the file lazily.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        layers: Sequence[int],
        kinds: Sequence[str],
        heads: Sequence[int],
        size: tuple[int, int],
    ) -> None:
        self._replacing = replacing(path)
        self._file = h5netcdf.File(self._replacing.__enter__(), "w")
        self._rows = 0
        self._tokens: list[np.ndarray] = []  # [sequence, position, label] x token
        fixed = {"layer": len(layers), "head": len(heads), "key_channel": size[0], "channel": size[1]}
        self._file.dimensions = {"token": None, **fixed}
        chunks = (1, 1, len(heads), *size)
        self._file.create_variable("state", ("token", *fixed), np.float32, chunks=chunks, fillvalue=np.nan)
        self._file.create_variable("layer", ("layer",), np.int64, data=np.array(layers))
        self._file.create_variable("head", ("head",), np.int64, data=np.array(heads))
        self._file.create_variable("kind", ("layer",), _TEXT, data=np.array(kinds, dtype=object))

    def extend(self, sequence: np.ndarray, position: np.ndarray, label: np.ndarray) -> int:
        """Add rows for the states after tokens, int [token]; `label` holds indices of labels. Return the first row."""
        first, self._rows = self._rows, self._rows + len(sequence)
        self._file.resize_dimension("token", self._rows)
        self._tokens.append(np.stack([sequence, position, label]))
        return first

    def write(self, layer: int, row: int, states: np.ndarray) -> None:
        """Write states [token, head, key channel, channel] of the `layer`-th layer, from this row on."""
        self._file["state"][row : row + len(states), layer] = states

    def close(self, facts: Mapping[str, Any] | None) -> None:
        """Close the file and move it to `path`, with the facts of a recording; None deletes it."""
        if facts is None:
            self._file.close()
            self._replacing.__exit__(InterruptedError, InterruptedError("nothing to keep"), None)
            return
        # it is not a Recording: leave out what marks one
        facts = {name: value for name, value in facts.items() if name not in ("format", "package")}
        names = list(json.loads(facts["labels"]) if isinstance(facts["labels"], str) else facts["labels"])
        sequence, position, label = np.concatenate([np.zeros((3, 0), np.int64), *self._tokens], axis=1)
        self._file.create_variable("sequence", ("token",), np.int64, data=sequence)
        self._file.create_variable("position", ("token",), np.int64, data=position)
        self._file.create_variable("label", ("token",), _TEXT, data=np.array(names, dtype=object)[label])
        self._file["state"].attrs["coordinates"] = "sequence position label kind"
        for name, value in facts.items():
            self._file.attrs[name] = value if isinstance(value, str | int | float) else json.dumps(value)
        self._file.close()
        self._replacing.__exit__(None, None, None)
