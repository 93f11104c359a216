"""Provenance of a recording: model, device, kernels, tokens, and package versions."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from qwenlab import __version__

FORMAT = 1
"""Version of the recording format; files with a later one cannot be opened."""

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
    cropped: Mapping[str, int] | Literal[""] | None = "",
    seed: int | str = "",
    interventions: Sequence[str] = (),
) -> dict[str, str | int | float]:
    """The root attrs of a recording: these facts, the installed versions, and the current time (UTC).

    layer_types    the kind of each decoder layer, as in the config
    labels         number of tokens by label
    cropped        number of these tokens by label that were later cropped from their cache, such as rejected drafts;
                   None if it is unknown, "" where no cache was watched
    seed           of random draws; "" without any
    interventions  those that were active while the model was watched, as they are written

    Versions are read from package metadata, without imports; packages that are not installed are left out.
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
        **({} if cropped == "" else cropped_attrs(cropped)),
        "prompts_hash": prompts_hash,
        "seed": seed,
        "interventions": json.dumps(list(interventions)),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "qwenlab": __version__,
        **versions(),
    }


def cropped_attrs(cropped: Mapping[str, int] | None) -> dict[str, int | str]:
    """The root attrs about cropped tokens: all and by label, or "unknown" and none."""
    total = "unknown" if cropped is None else sum(cropped.values())
    return {"cropped_tokens": total, "cropped_labels": json.dumps(dict(cropped or {}))}


def versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str]:
    """Versions of the packages that are installed, by name with underscores."""
    return {package.replace("-", "_"): found for package in packages if (found := _version(package)) is not None}


@cache
def _version(package: str) -> str | None:
    """The version of a package, read once: the code of a process does not change."""
    with suppress(PackageNotFoundError):
        return version(package)
    return None
