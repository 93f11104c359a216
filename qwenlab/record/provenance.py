"""Where a recording came from: what was watched, on what, with which versions."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from qwenlab import __version__

FORMAT = 1
"""The number of the recording format; a file with a higher one is refused."""

_PACKAGES = ("torch", "transformers", "numpy", "xarray", "flash-linear-attention", "triton")


def provenance(
    *,
    checkpoint: str,
    checkpoint_hash: str,
    family: str,
    layer_types: Sequence[str],
    dtype: str,
    device: str,
    kernel_delta_rule: str,
    attention_implementation: str,
    experts_implementation: str,
    tokens: int,
    sequences: int,
    labels: Mapping[str, int],
    prompts_hash: str,
    seed: int | str = "",
    edits: Sequence[str] = (),
) -> dict[str, str | int | float]:
    """The root attrs of a recording: the facts given, the versions installed here, and the time now (UTC).

    layer_types  the kind of each layer of the trunk, in the words of the config
    labels       tokens read by label
    seed         of whatever the reader drew at random; "" where nothing was drawn

    edits        what was changed inside the model while it was watched, as it was written

    Versions are those of the installed packages, read without importing them; one that is not installed is left out.
    """
    return {
        "format": str(FORMAT),
        "package": "qwenlab",
        "checkpoint": checkpoint,
        "checkpoint_hash": checkpoint_hash,
        "family": family,
        "layer_types": json.dumps(list(layer_types)),
        "dtype": dtype,
        "device": device,
        "kernel_delta_rule": kernel_delta_rule,
        "attention_implementation": attention_implementation,
        "experts_implementation": experts_implementation,
        "tokens": tokens,
        "sequences": sequences,
        "labels": json.dumps(dict(labels)),
        "prompts_hash": prompts_hash,
        "seed": seed,
        "edits": json.dumps(list(edits)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "qwenlab": __version__,
        **versions(),
    }


def versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Versions of those packages that are installed, by name with underscores."""
    found = {}
    for package in packages:
        try:
            found[package.replace("-", "_")] = version(package)
        except PackageNotFoundError:
            continue
    return found
