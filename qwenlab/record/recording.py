"""`Recording`: the results of probes as labelled Datasets with their provenance; save, open and merge."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import xarray as xr

from qwenlab import __version__
from qwenlab.errors import NewerRecording, NotARecording, ProbeNotRecorded, TruncatedRecording
from qwenlab.record import display
from qwenlab.record.merging import merged
from qwenlab.record.provenance import FORMAT
from qwenlab.record.whole_files import replacing

PROBES = {
    "deltanet": "DeltaNet",
    "deltastate": "DeltaState",
    "retention": "Retention",
    "state_precision": "StatePrecision",
    "attention": "Attention",
    "implicit_attention": "ImplicitAttention",
    "softmax_attention": "SoftmaxAttention",
    "routing": "Routing",
    "residual": "Residual",
    "timing": "Timing",
    "memory": "Memory",
}
"""The probe that writes each node."""

DECODED = {
    "rounds": "qwenlab.speculative.generate(checkpoint, prompts, depth=...).recording()",
    "trace": "qwenlab.speculative.trace(checkpoint, texts, depth=...).recording()",
    "losses": "qwenlab.tasks.losses(checkpoint, texts)",
    "ablations": "qwenlab.ablations.sweep(checkpoint, ablations, tasks)",
    "ablated_acceptance": "qwenlab.ablations.acceptance(checkpoint, ablations, texts)",
    "patching": "qwenlab.ablations.patching(checkpoint, source, target, answers)",
}
"""The nodes that no probe writes, and the calls that do."""

_COMPRESSED = 64 * 1024  # bytes; smaller variables are not compressed
_DIGEST = "content_sha256"  # the file's attribute with the hash of everything else in it


class Recording:
    """One Dataset per probe, and their provenance.

        recording["routing"]              the Dataset of the Routing probe: sums and counts, with named dims and units
        recording.attrs["checkpoint"]     provenance: versions, dtype, device, kernels, hashes, tokens
        recording.tree                    the xarray DataTree underneath
        recording.save("run.nc")          NetCDF; Recording.open("run.nc") reads it back on any machine

    datasets    node name ("deltanet", "attention", "routing", "residual", "timing", "memory" of the probes; "rounds",
                "trace" of decoding) -> Dataset, or a function that builds it when the recording is first read
    provenance  root attrs; numbers and strings stay as they are, other values become JSON
    """

    def __init__(
        self, datasets: Mapping[str, xr.Dataset | Callable[[], xr.Dataset]], provenance: Mapping[str, Any]
    ) -> None:
        facts = {"format": str(FORMAT), "package": "qwenlab", **provenance}
        self._datasets, self._attrs = datasets, {name: _plain(value) for name, value in facts.items()}
        if not any(map(callable, datasets.values())):
            self.tree = self._built()

    @cached_property
    def tree(self) -> xr.DataTree:
        """The xarray DataTree underneath, built when the recording is first read."""
        return self._built()

    def _built(self) -> xr.DataTree:
        nodes = {f"/{name}": each() if callable(each) else each for name, each in self._datasets.items()}
        self._datasets = {}
        return xr.DataTree.from_dict({"/": xr.Dataset(attrs=self._attrs), **nodes})

    def __getstate__(self) -> dict[str, Any]:
        """The tree alone: what is not built yet cannot be pickled."""
        return {"tree": self.tree}

    @property
    def attrs(self) -> dict[str, Any]:
        """Provenance: versions, dtype, device, kernels, hashes, tokens read."""
        return cast(dict[str, Any], self.tree.attrs)

    @property
    def checkpoint(self) -> str:
        """The name of the watched checkpoint."""
        return str(self.attrs.get("checkpoint", "an unnamed model"))

    def __iter__(self) -> Iterator[str]:
        return iter(self.tree.children)

    def __contains__(self, node: object) -> bool:
        return node in self.tree.children

    def __getitem__(self, node: str) -> xr.Dataset:
        """The Dataset of one node. Raises ProbeNotRecorded if no probe recorded it."""
        if node in self:
            return self.tree[node].to_dataset()
        has = f"This recording of {self.checkpoint} has: {', '.join(self) or 'nothing'}."
        if node in DECODED:
            raise ProbeNotRecorded(f"No {node!r} was recorded.\n{has}\nIt comes from {DECODED[node]}.")
        if node not in PROBES:
            names = ", ".join([*PROBES, *DECODED])
            raise ProbeNotRecorded(f"No probe writes a node {node!r}.\n{has}\nNodes are named {names}.")
        raise ProbeNotRecorded(
            f"No {node!r} was recorded.\n{has}\n"
            f"Watch with its probe: qwenlab.watch(model, qwenlab.probes.{PROBES[node]}())."
        )

    def merge(self, *others: Recording) -> Recording:
        """This recording and others, as if one `with` block had read all their texts in this order.

        Sums, counts and histograms add up. Raises CannotMerge for recordings that cannot be added: another checkpoint,
        dtype, set of probes or labels, sample, or other layers or bins.
        """
        result = self
        for other in others:
            datasets, attrs = merged(result.tree, other.tree)
            result = Recording(datasets, attrs)
        return result

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write NetCDF (with h5netcdf) and return its path; an existing file is replaced in one step.

        The data go to a temporary file first, so a process that is killed never leaves half a recording.
        """
        with replacing(path) as temporary:
            stored = self.tree.copy(deep=False)
            stored.attrs = {**self.attrs, _DIGEST: _digest(self.tree)}
            stored.to_netcdf(temporary, engine="h5netcdf", encoding=self._encoding())
        return Path(path).absolute()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Recording:
        """Read a saved recording into memory.

        Raises NotARecording (no such file, or not one of ours), TruncatedRecording (an incomplete or damaged file)
        and NewerRecording (a later format).
        """
        file = Path(path)
        wrong = ": no such file" if not file.is_file() else "" if h5py.is_hdf5(file) else " is not a NetCDF file"
        if wrong:
            raise NotARecording(f"{file}{wrong}.\nRecording.open reads files that recording.save(path) wrote.")
        try:
            with xr.open_datatree(file, engine="h5netcdf", decode_times=False) as stored:
                tree = stored.load()
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise _damaged(file, error) from error
        digest = tree.attrs.pop(_DIGEST, "")
        _check_format(file, tree.attrs)
        if digest != _digest(tree):
            raise _damaged(file, "its contents do not match its hash")
        attrs = {str(name): value for name, value in tree.attrs.items()}
        return cls({name: node.to_dataset() for name, node in tree.children.items()}, attrs)

    def _encoding(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Compression for the large variables, by node."""
        packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        return {
            f"/{name}": {str(v): packed for v, variable in node.data_vars.items() if variable.nbytes > _COMPRESSED}
            for name, node in self.tree.children.items()
        }

    def __repr__(self) -> str:
        return display.text(self.tree)

    def _repr_html_(self) -> str:
        return display.html(self.tree)


open = Recording.open
merge = Recording.merge


def _plain(value: Any) -> str | int | float:
    """A value that NetCDF can store, or its JSON."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    if hasattr(value, "item"):  # a NumPy scalar, as read from NetCDF
        return _plain(value.item())
    return json.dumps(value)


def _digest(tree: xr.DataTree) -> str:
    """A hash of every name, number, text and attribute of a tree."""
    digest = hashlib.sha256()
    for node in tree.subtree:
        digest.update(f"{node.path}{_texts(node.attrs)}".encode())
        for name in sorted(node.variables, key=str):
            variable = node.variables[name]
            digest.update(f"{name}{variable.dims}{variable.shape}{_texts(variable.attrs)}".encode())
            # an empty text variable is read back as an empty numeric one
            numbers = variable.dtype.kind in "biuf" or not variable.size
            digest.update(variable.values.tobytes() if numbers else json.dumps(variable.values.tolist()).encode())
    return digest.hexdigest()


def _texts(attrs: Mapping[Any, Any]) -> str:
    """Attributes as text, the same before and after a round trip through a file."""
    return json.dumps({str(name): str(np.ravel(value).tolist()) for name, value in attrs.items()}, sort_keys=True)


def _damaged(file: Path, why: object) -> TruncatedRecording:
    return TruncatedRecording(
        f"{file} is damaged or ends too early ({file.stat().st_size:,} bytes): {why}.\n"
        "A damaged recording cannot be repaired: record it again, or copy it again from an intact file."
    )


def _check_format(file: Path, attrs: Mapping[Any, Any]) -> None:
    """Raise NotARecording for another tree, and NewerRecording for a later format."""
    number = str(attrs.get("format", ""))
    if attrs.get("package") != "qwenlab" or not number.isdecimal():
        raise NotARecording(
            f"{file} is a NetCDF file, but not a recording of qwenlab: it has no root attributes package and format.\n"
            "Open it with xarray.open_datatree instead."
        )
    if int(number) > FORMAT:
        raise NewerRecording(
            f"{file} has recording format {number}, written by qwenlab {attrs.get('qwenlab', '?')}; "
            f"this is qwenlab {__version__}, which reads up to format {FORMAT}.\nInstall a newer qwenlab."
        )
