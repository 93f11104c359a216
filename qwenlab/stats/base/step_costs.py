"""Read and check the costs of drafting and verification steps."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument, MissingVariable

_NEEDS = ("plain_step", "verify_step", "draft_step", "rollback")
_AGAIN = "Measure the steps again, on the machine of interest."


class StepCosts(NamedTuple):
    """Seconds per plain step, verify step [width - 1], draft step and rollback; overhead: of the loop, per round."""

    plain: float
    verify: np.ndarray
    draft: float
    rollback: float
    overhead: float

    def fixed(self, depth: int) -> np.ndarray:
        """Seconds per round that drafts d tokens, d = 1 to depth: [depth]."""
        d = np.arange(1, depth + 1)
        return d * self.draft + self.verify[d] + self.rollback + self.overhead

    def of(self, data: xr.Dataset) -> np.ndarray:
        """Seconds of all rounds of a ledger together: drafting, verifying, rolling back, and the surrounding loop."""
        rounds = data.sizes["round"]
        draft, verify = data["proposed"].values.sum() * self.draft, self.verify[data["drafted"].values].sum()
        return np.array([draft, verify, rounds * self.rollback, rounds * self.overhead])


def read_costs(costs: xr.Dataset, widest: int) -> StepCosts:
    """Return the costs of steps of width 1 to `widest`; raises MissingVariable, or BadArgument for invalid times."""
    if not isinstance(costs, xr.Dataset):
        raise BadArgument(f"costs is a {type(costs).__name__}: give a Dataset with {', '.join(_NEEDS)}, in seconds.")
    if missing := [name for name in _NEEDS if name not in costs]:
        has = ", ".join(map(str, costs)) or "nothing"
        raise MissingVariable(f"No {', '.join(missing)} in the costs; they have {has}.\nMeasure it, in seconds.")
    present = {name: costs[name] for name in (*_NEEDS, "overhead") if name in costs}
    for name, cost in present.items():
        if cost.attrs.get("units", "s") != "s":
            raise BadArgument(f"costs[{name!r}] is in {cost.attrs['units']}, not in seconds (s).\nConvert it first.")
        enough = cost.values >= 0 if name in ("rollback", "overhead") else cost.values > 0
        if not (np.isfinite(cost.values) & enough).all():
            raise BadArgument(f"costs[{name!r}] is {cost.values.tolist()}, not a time in seconds.\n{_AGAIN}")
    single = {name: float(cost) for name, cost in present.items() if name != "verify_step"}
    return StepCosts(
        plain=single["plain_step"],
        verify=by_width(costs, "verify_step", widest),
        draft=single["draft_step"],
        rollback=single["rollback"],
        overhead=single.get("overhead", 0.0),
    )


def by_width(costs: xr.Dataset, name: str, widest: int) -> np.ndarray:
    """Return a cost by width, 1 to `widest`; raises BadArgument for a width that was not measured."""
    needed = list(range(1, widest + 1))
    measured = costs["width"].values.tolist() if "width" in costs.coords and costs[name].dims == ("width",) else []
    if missing := sorted(set(needed) - set(measured)):
        lacks = f"not width {', '.join(map(str, missing))}" if measured else "no coordinate width"
        raise BadArgument(
            f"costs[{name!r}] has {lacks}: a round of {widest - 1} drafts is verified in one step of width {widest}.\n"
            f"{_AGAIN}"
        )
    return np.asarray(costs[name].sel(width=needed).values, np.float64)
