"""Compare two results of one case bit for bit."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from evidence.reference import names
from evidence.reference.intended import reason
from evidence.reference.results import Flat

PROSE = ("@long_name", "findings")
"""Ends of paths to sentences for readers. A refactoring may reword them: they are counted, and do not fail."""

FAILED = "error"
"""Path of the traceback of a case that raised."""

_SHOWN = 4


@dataclass
class Comparison:
    """What differs between two results of one case, one line for each path."""

    arrays: int = 0
    texts: int = 0
    differences: list[str] = field(default_factory=list)
    reworded: int = 0
    intended: Counter[str] = field(default_factory=Counter)

    @property
    def equal(self) -> bool:
        """Whether there is something to compare, and all of it is equal."""
        return not self.differences

    def __str__(self) -> str:
        more = len(self.differences) - _SHOWN
        lines = [*self.differences[:_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        words = f", {self.reworded} reworded" if self.reworded else ""
        words += f", {self.intended.total()} intended" if self.intended else ""
        return f"{self.arrays} arrays, {self.texts} texts{words}" + "".join(f"\n        {line}" for line in lines)


def empty() -> Flat:
    """The result of a case that a checkout does not have."""
    return {}


def compare(before: Flat, after: Flat, case: str = "") -> Comparison:
    """Compare two flat results. Fields and texts of `before` may have the names after, by the tables in `names`.

    Arrays are equal if their dtype, shape and every bit are; a NaN equals any NaN. A result with no value
    other than NaN is a difference.
    """
    texts = sum(isinstance(value, str) for value in before.values())
    found = Comparison(arrays=len(before) - texts, texts=texts)
    for side, flat in (("before", before), ("after", after)):
        if FAILED in flat:
            found.differences.append(f"failed {side}: {flat[FAILED]}")
        elif not any(map(_tells, flat.values())):
            found.differences.append(f"nothing {side}: no array with a value other than NaN")
    if found.differences:
        return found
    left = dict(after)
    for old, value in before.items():
        path = next((path for path in (names.renamed(old, names.FIELDS), old) if path in left), None)
        if path is None:
            found.differences.append(f"{old}: missing after")
        elif line := difference(value, left.pop(path)):
            if path.endswith(PROSE):
                found.reworded += 1
            else:
                found.differences.append(f"{path}: {line}")
    found.differences += [f"{path}: extra after" for path in left]
    meant = [reason(f"{case}: {line}") for line in found.differences]
    found.intended.update(filter(None, meant))
    found.differences = [line for line, why in zip(found.differences, meant, strict=True) if not why]
    return found


def difference(before: np.ndarray | str, after: np.ndarray | str) -> str:
    """How two values differ; "" if they do not."""
    if isinstance(before, str) or isinstance(after, str):
        renamed = _renamed(str(before))
        in_order = " ".join(sorted(renamed.split()))  # names of coordinates are sorted
        same = isinstance(before, str) and isinstance(after, str) and after in (before, renamed, in_order)
        return "" if same else f"{_short(before)} became {_short(after)}"
    if before.dtype.kind in "US" and after.dtype.kind in "US" and before.shape == after.shape:
        pairs = zip(before.ravel().tolist(), after.ravel().tolist(), strict=True)
        unequal = sum(new not in (old, _renamed(old)) for old, new in pairs)
        return f"{unequal} of {before.size} texts differ" if unequal else ""
    if before.dtype != after.dtype or before.shape != after.shape:
        return f"{before.dtype} {before.shape} became {after.dtype} {after.shape}"
    differing = ~same_bits(before, after)
    if not differing.any():
        return ""
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(before[differing].astype(np.float64) - after[differing].astype(np.float64))
    largest = distance[~np.isnan(distance)].max(initial=0.0)
    return f"{differing.sum()} of {differing.size} differ, by {largest:.3g} at most"


def same_bits(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """bool, in their shape: where two arrays of one dtype have the same bits, or both a NaN."""
    bits = [np.ascontiguousarray(array).reshape(-1, 1).view(np.uint8) for array in (before, after)]
    same = (bits[0] == bits[1]).all(axis=1).reshape(before.shape)
    return same | (np.isnan(before) & np.isnan(after)) if before.dtype.kind == "f" else same


def _tells(value: np.ndarray | str) -> bool:
    """Whether it is an array with a value that is not NaN."""
    return not isinstance(value, str) and value.size > 0 and not (value.dtype.kind == "f" and np.isnan(value).all())


def _renamed(text: str) -> str:
    """A text with words and fields as they are named after."""
    return names.renamed(text, names.FIELDS | names.TEXTS)


def _short(value: np.ndarray | str) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:76]}..."
