"""Two runs, or two stores, side by side: what was different, and what moved beyond noise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from qwenlab.errors import CannotCompare
from qwenlab.experiments.store.catalogue import Catalogue, catalogue
from qwenlab.experiments.store.find import StoreLike, opened, run_row
from qwenlab.stats.formulas.intervals import bootstrap

RESAMPLES = 10_000
CONFIDENCE = 0.95
"""Of all intervals of one comparison together: each gets its share of what is left (Bonferroni)."""

_DIFFERENT = ("parameters", "seed", "checkpoints", "code", "versions", "machine", "notebook")


@dataclass(frozen=True)
class Comparison:
    """Old beside new.

    facts    what is not the same in both, one a row: `what`, `old`, `new`
    metrics  one a row: `metric`, `units`, `old` and `new` (means over what both have), `difference` (new - old), its
             interval `low` to `high`, `n` of the `unit` that was resampled, and `moved`: True, False, or None where
             there is no second value to tell noise by; `better` as the spec has it
    points   how many runs stand beside each other
    """

    facts: pd.DataFrame
    metrics: pd.DataFrame
    points: int

    @property
    def moved(self) -> bool:
        """Whether any metric moved beyond noise, or by anything where noise is not known."""
        known = self.metrics["moved"]
        return bool((known.eq(True) | (known.isna() & self.metrics["difference"].ne(0))).any())

    @property
    def worse(self) -> list[str]:
        """The metrics that moved beyond noise in the direction that their spec calls worse."""
        sign = self.metrics["better"].map({"lower": 1, "higher": -1}).fillna(0)
        return list(self.metrics["metric"][self.metrics["moved"].eq(True) & (sign * self.metrics["difference"]).gt(0)])


def compare(old: str, new: str, *, store: StoreLike = None, new_store: StoreLike = None) -> Comparison:
    """Two runs by their names, of one store or of two.

    Where a metric has a dimension of pairs (texts, prompts), the interval is `stats.formulas.intervals.bootstrap` over
    the differences pair by pair: 10,000 resamples, seed 0, at 95 % over all metrics together. Else there is one
    difference and no interval. Raises UnknownRun, and CannotCompare where labels or units are not the same.
    """
    rows = run_row(old, store=store), run_row(new, store=new_store or store)
    values = [
        _values(catalogue(opened(each)), row) for each, row in zip((store, new_store or store), rows, strict=True)
    ]
    facts = [json.loads(row["facts"]) for row in rows]
    return Comparison(_differences(*facts), _compared([(values[0], values[1], facts[1])]), 1)


def compare_stores(old: StoreLike, new: StoreLike, experiment: str | None = None) -> Comparison:
    """The finished runs of two stores, those of the same parameters and seed beside each other.

    For a nightly check: where a metric has pairs the bootstrap resamples them, each with its differences in all runs;
    else it resamples the runs. Raises CannotCompare where no run has a counterpart.
    """
    found = [catalogue(opened(each)) for each in (old, new)]
    tables = [_finished(each, experiment) for each in found]
    both = [key for key in tables[0] if key in tables[1]]
    if not both:
        raise CannotCompare(
            f"No run in {opened(new).url} has the parameters and the seed of one in {opened(old).url}.\n"
            f"They have {len(tables[1])} and {len(tables[0])} finished runs."
        )
    pairs = [
        (_values(found[0], tables[0][key]), _values(found[1], tables[1][key]), _facts(tables[1][key])) for key in both
    ]
    facts = [_differences(_facts(tables[0][key]), _facts(tables[1][key])) for key in both]
    return Comparison(pd.concat(facts).drop_duplicates().reset_index(drop=True), _compared(pairs), len(both))


def _finished(catalogue: Catalogue, experiment: str | None) -> dict[str, pd.Series]:
    """The finished runs of a store by what they were asked: experiment, parameters, seed."""
    runs, found = catalogue.runs, {}
    for _, row in runs[runs["state"] == "finished"].iterrows():
        if experiment in (None, row["experiment"]):
            asked = [row["experiment"], _facts(row)["parameters"], row["seed"]]
            found[json.dumps(asked, sort_keys=True)] = row
    return found


def _facts(row: pd.Series) -> dict[str, Any]:
    return json.loads(row["facts"])


def _values(catalogue: Catalogue, row: pd.Series) -> pd.DataFrame:
    found = catalogue.metrics
    return found[found["folder"] == row["folder"]].set_index(["metric", "labels"])[["value", "units"]]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> pd.DataFrame:
    """What two runs' facts say differently, flattened: `parameters.max_tokens`."""
    flat = [dict(_flat({name: each.get(name) for name in _DIFFERENT})) for each in (old, new)]
    names = [name for name in dict.fromkeys([*flat[0], *flat[1]]) if flat[0].get(name) != flat[1].get(name)]
    rows = [(name, flat[0].get(name), flat[1].get(name)) for name in names]
    return pd.DataFrame(rows, columns=["what", "old", "new"]).astype(object)


def _flat(what: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in what.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", json.dumps(value) if isinstance(value, list) else value


Pair = tuple[pd.DataFrame, pd.DataFrame, Mapping[str, Any]]
_COLUMNS = ["metric", "units", "old", "new", "difference", "low", "high", "n", "unit", "moved", "better"]


def _compared(pairs: Sequence[Pair]) -> pd.DataFrame:
    """A row a metric that both sides recorded."""
    declared: dict[str, Any] = {name: metric for pair in pairs for name, metric in pair[2]["metrics"].items()}
    shared = [name for name in declared if any(_has(old, name) and _has(new, name) for old, new, _ in pairs)]
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(shared))
    rows = [_row(name, declared[name], pairs, confidence) for name in shared]
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"moved": object})


def _has(values: pd.DataFrame, name: str) -> bool:
    return name in values.index.get_level_values("metric")


def _row(name: str, metric: Mapping[str, Any], pairs: Sequence[Pair], confidence: float) -> dict[str, Any]:
    matched = pd.concat([_matched(name, metric["pairs"], n, old, new) for n, (old, new, _) in enumerate(pairs)])
    unit = metric["pairs"] or "run"
    difference = (matched["value_new"] - matched["value_old"]).groupby(matched["unit_label"]).mean()
    values, mean = difference.to_numpy(), float((matched["value_new"] - matched["value_old"]).mean())
    low, high = _interval(values, confidence)
    moved = None if np.isnan(low) else bool(low > 0 or high < 0)
    return {
        "metric": name,
        "units": matched["units"].iloc[0] if len(matched) else metric["units"],
        "old": matched["value_old"].mean(),
        "new": matched["value_new"].mean(),
        "difference": mean,
        "low": low,
        "high": high,
        "n": len(values),
        "unit": unit,
        "moved": moved,
        "better": metric["better"],
    }


def _matched(name: str, pairs: str | None, point: int, old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """The values of one metric in two runs, by label, where neither is NaN; `unit_label` is what is resampled."""
    if not (_has(old, name) and _has(new, name)):
        return pd.DataFrame(columns=["value_old", "value_new", "units", "unit_label"])
    one, other = old.loc[[name]].reset_index(), new.loc[[name]].reset_index()
    if set(one["units"]) != set(other["units"]):
        raise CannotCompare(
            f"{name!r} is in {one['units'].iloc[0]} in one run and {other['units'].iloc[0]} in the other."
        )
    if set(one["labels"]) != set(other["labels"]):
        odd = sorted(set(one["labels"]) ^ set(other["labels"]))
        raise CannotCompare(
            f"{name!r} has other labels in the two runs: {len(odd)} are in one alone, such as {odd[0]}."
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
