"""Compare two runs or two stores: the facts that differ, and the metrics that changed beyond noise."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from qwenlab.errors import CannotCompare
from qwenlab.experiments.store.catalogue import Catalogue, catalogue
from qwenlab.experiments.store.find import flat, run_row, scalar
from qwenlab.experiments.store.location import StoreLike, store_at
from qwenlab.stats.formulas.intervals import bootstrap

RESAMPLES = 10_000
CONFIDENCE = 0.95
"""Joint confidence of all intervals of one comparison; each has an equal share of the error rate (Bonferroni)."""

_DIFFERENT = ("parameters", "seed", "checkpoints", "code", "versions", "machine", "notebook")
_COLUMNS = ["metric", "units", "old", "new", "difference", "low", "high", "n", "unit", "moved", "better"]


@dataclass(frozen=True)
class Comparison:
    """The differences between an old and a new run, or store.

    facts    one row per fact that differs: `what`, `old`, `new`
    metrics  one row per metric: `metric`, `units`, `old` and `new` (means over the values that both have),
             `difference` (new - old), its interval `low` to `high`, `n` of the `unit` that was resampled; `moved`:
             True, False, or None if a single value leaves the noise unknown; `better` from the spec
    points   number of pairs of runs that were compared
    """

    facts: pd.DataFrame
    metrics: pd.DataFrame
    points: int

    @property
    def moved(self) -> bool:
        """Whether any metric moved beyond noise, or at all if its noise is unknown."""
        moved = self.metrics["moved"]
        return bool((moved.eq(True) | (moved.isna() & self.metrics["difference"].ne(0))).any())

    @property
    def worse(self) -> list[str]:
        """The metrics that moved beyond noise in the worse direction according to their spec."""
        sign = self.metrics["better"].map({"lower": 1, "higher": -1}).fillna(0)
        return list(self.metrics["metric"][self.metrics["moved"].eq(True) & (sign * self.metrics["difference"]).gt(0)])


def compare(old: str, new: str, *, store: StoreLike = None, new_store: StoreLike = None) -> Comparison:
    """Compare two runs by their names, of one store or of two.

    If a metric has a dimension of pairs (texts, prompts), its interval is `stats.formulas.intervals.bootstrap`
    over the paired differences: 10,000 resamples, seed 0, at 95 % over all metrics together. Else there is one
    difference and no interval. Raises UnknownRun, and CannotCompare if labels or units differ.
    """
    runs = []
    for name, where in ((old, store_at(store)), (new, store_at(new_store or store))):
        found = catalogue(where)
        runs.append(_run(run_row(name, found.runs, where.url), found))
    return _comparison([(runs[0], runs[1])])


def compare_stores(old: StoreLike, new: StoreLike, experiment: str | None = None) -> Comparison:
    """Compare the finished runs of two stores, in pairs with the same experiment, parameters and seed.

    For a nightly check: if a metric has pairs, the bootstrap resamples them, each with its differences in all runs;
    else it resamples the runs. Raises CannotCompare if no run has a counterpart.
    """
    old, new = store_at(old), store_at(new)
    before, after = catalogue(old), catalogue(new)
    old_runs, new_runs = _finished(before, experiment), _finished(after, experiment)
    pairs = [(_run(row, before), _run(new_runs[key], after)) for key, row in old_runs.items() if key in new_runs]
    if not pairs:
        raise CannotCompare(
            f"No run in {new.url} has the parameters and the seed of one in {old.url}.\n"
            f"They have {len(new_runs)} and {len(old_runs)} finished runs."
        )
    return _comparison(pairs)


class _RunData(NamedTuple):
    """The facts of a run, and its values: columns value and units, by metric and labels."""

    facts: Mapping[str, Any]
    values: pd.DataFrame


def _run(row: pd.Series, found: Catalogue) -> _RunData:
    values = found.metrics[found.metrics["folder"] == row["folder"]]
    return _RunData(json.loads(row["facts"]), values.set_index(["metric", "labels"])[["value", "units"]])


def _finished(found: Catalogue, experiment: str | None) -> dict[str, pd.Series]:
    """The rows of finished runs, by JSON of experiment, parameters and seed."""
    rows = (row for _, row in found.runs[found.runs["state"] == "finished"].iterrows())
    return {
        json.dumps([row["experiment"], json.loads(row["facts"])["parameters"], row["seed"]], sort_keys=True): row
        for row in rows
        if experiment in (None, row["experiment"])
    }


def _comparison(pairs: Sequence[tuple[_RunData, _RunData]]) -> Comparison:
    declared: dict[str, Any] = {name: metric for _, new in pairs for name, metric in new.facts["metrics"].items()}
    values = [(old.values, new.values) for old, new in pairs]
    shared = [name for name in declared if any(_has(old, name) and _has(new, name) for old, new in values)]
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(shared))
    rows = [_row(name, declared[name], values, confidence) for name in shared]
    metrics = pd.DataFrame(rows, columns=_COLUMNS).astype({"moved": object})
    facts = pd.concat([_differences(old.facts, new.facts) for old, new in pairs]).drop_duplicates()
    return Comparison(facts.reset_index(drop=True), metrics, len(pairs))


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> pd.DataFrame:
    """The facts that differ between two runs, with flattened names: `parameters.max_tokens`."""
    one, other = (
        {name: scalar(value) for name, value in flat({name: facts.get(name) for name in _DIFFERENT})}
        for facts in (old, new)
    )
    names = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    rows = [(name, one.get(name), other.get(name)) for name in names]
    return pd.DataFrame(rows, columns=["what", "old", "new"]).astype(object)


def _has(values: pd.DataFrame, name: str) -> bool:
    return name in values.index.get_level_values("metric")


def _row(
    name: str, metric: Mapping[str, Any], values: Sequence[tuple[pd.DataFrame, pd.DataFrame]], confidence: float
) -> dict[str, Any]:
    matched = pd.concat([_matched(name, metric["pairs"], n, old, new) for n, (old, new) in enumerate(values)])
    differences = matched["value_new"] - matched["value_old"]
    difference = differences.groupby(matched["unit_label"]).mean()
    low, high = _interval(difference.to_numpy(), confidence)
    return {
        "metric": name,
        "units": matched["units"].iloc[0] if len(matched) else metric["units"],
        "old": matched["value_old"].mean(),
        "new": matched["value_new"].mean(),
        "difference": float(differences.mean()),
        "low": low,
        "high": high,
        "n": len(difference),
        "unit": metric["pairs"] or "run",
        "moved": None if np.isnan(low) else bool(low > 0 or high < 0),
        "better": metric["better"],
    }


def _matched(name: str, pairs: str | None, point: int, old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """The values of one metric in two runs, joined by label and without NaN; `unit_label` is the unit to resample."""
    if not (_has(old, name) and _has(new, name)):
        return pd.DataFrame(columns=["value_old", "value_new", "units", "unit_label"])
    one, other = old.loc[[name]].reset_index(), new.loc[[name]].reset_index()
    if set(one["units"]) != set(other["units"]):
        raise CannotCompare(
            f"{name!r} has the units {one['units'].iloc[0]} in one run and {other['units'].iloc[0]} in the other."
        )
    if set(one["labels"]) != set(other["labels"]):
        odd = sorted(set(one["labels"]) ^ set(other["labels"]))
        raise CannotCompare(
            f"{name!r} has different labels in the two runs: {len(odd)} are in only one, such as {odd[0]}."
        )
    both = one.merge(other[["labels", "value"]], on="labels", suffixes=("_old", "_new")).dropna()
    units = [str(point) if pairs is None else str(json.loads(labels)[pairs]) for labels in both["labels"]]
    return both.assign(unit_label=units)


def _interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Bootstrap interval of the mean; NaN for fewer than two values."""
    ((low, high),) = bootstrap(
        values[:, None], lambda sums: sums / len(values), level=confidence, resamples=RESAMPLES, seed=0
    )
    return float(low), float(high)
