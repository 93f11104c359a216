"""Load of experts: how evenly they are used, how many at a time, and which are never used."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from qwenlab.errors import InconsistentRecording
from qwenlab.stats.base.source import RECORD_AGAIN, Source, along, ratio, read, statistic
from qwenlab.stats.base.sums import MeanSum, estimated, means
from qwenlab.stats.base.variables import described, result
from qwenlab.stats.formulas import experts as formulas
from qwenlab.stats.formulas.information import entropy

_CURVE = 32  # points of a rarefaction curve
_SHARES = {
    "share": MeanSum("share of slots", "load", 1, over="slots"),
    "weight_share": MeanSum("share of weight", "routing weight", 1, over="weight", counts="slots"),
}


@statistic
def expert_load(source: Source, *, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """Shares of the experts in the chosen slots (top_k per token), and how uniform they are, with intervals.

    share               [layer, expert] share of slots; even_share is 1 / E, the share of each of E experts if uniform
    weight_share        [layer, expert] share of the routing weight
    variation           [layer] coefficient of variation of the loads over experts: 0 when uniform
    normalised_entropy  [layer] entropy of the shares over ln E: 1 when uniform

    A finite sample is never exactly uniform: with N slots, chance alone gives a variation of about sqrt(E / N).
    """
    data = read(source, "routing", "load", "weight_sum", "tokens", by_label=by_label)
    load = checked_load(data)
    slots, weight = load.sum("expert"), data["weight_sum"]
    sums = {"share_sum": load, "slots": slots, "weight_share_sum": weight, "weight": weight.sum("expert")}
    variables = means(sums, _SHARES, level)
    how: dict[str, Any] = dict(units="1", level=level, within=(0, np.inf))
    name = "coefficient of variation of the loads"
    variation = partial(along, ["expert"], formulas.variation)
    variables |= estimated("variation", variation, (load,), slots, long_name=name, **how)
    how |= dict(units="share of ln E", within=(0, 1))
    variables |= estimated("normalised_entropy", _entropy, (load,), slots, long_name="entropy of the load", **how)
    variables["even_share"] = described(xr.DataArray(1 / data.sizes["expert"]), "share of slots", "uniform load")
    return result(data, variables)


def _entropy(load: xr.DataArray) -> xr.DataArray:
    return along(["expert"], entropy, load) / np.log(load.sizes["expert"])


@statistic
def distinct_experts(source: Source, *, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """Number of distinct experts in windows of n neighbouring tokens, by [layer, window], with intervals.

    distinct      mean number of distinct experts in aligned windows of n tokens
    independent   the same for n independent tokens of the same load: sum over experts of 1 - (1 - p)^n,
                  p the share of tokens that chose the expert
    relative      distinct / independent: below 1 if neighbours share experts (weights read once serve them all)

    With several labels added up, differences between texts already bring `relative` below 1; by_label=True excludes
    this.
    """
    data = read(source, "routing", "distinct_sum", "windows", "load", "tokens", by_label=by_label)
    load, windows, tokens = checked_load(data), data["windows"], data["tokens"]

    def independent(chose: xr.DataArray, n: xr.DataArray) -> xr.DataArray:
        share = ratio(chose, n)
        return along(["expert", "window"], formulas.distinct_if_independent, share, data["window"], out=["window"])

    def relative(distinct: xr.DataArray, n: xr.DataArray, chose: xr.DataArray, read_: xr.DataArray) -> xr.DataArray:
        return ratio(distinct, n) / independent(chose, read_)

    how: dict[str, Any] = dict(units="expert", level=level, within=(0, data.sizes["expert"]))
    sums = data["distinct_sum"], windows
    names = "distinct experts", "distinct experts of independent tokens"
    variables = estimated("distinct", ratio, sums, windows, long_name=names[0], **how)
    variables |= estimated("independent", independent, (load, tokens), tokens, long_name=names[1], **how)
    how |= dict(units="1", within=(0, np.inf), long_name="distinct experts over those of independent tokens")
    variables |= estimated("relative", relative, (*sums, load, tokens), windows, **how)
    return result(data, variables)


@statistic
def unused_experts(source: Source, *, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """Experts that no token chose, and how their number falls with the number of tokens read.

    unused        [layer, sample_size] expected number of unused experts after n tokens, drawn at random from those
                  read (rarefaction, exact), with its interval
    unused_final  [layer] number of experts unused after all tokens
    never_used    [layer, expert] bool: the expert is unused after all tokens

    If the curve still falls at its end, the number of unused experts depends on how much was read, not on the model.
    An expert unused in N independent tokens has, at level 0.95, a share of tokens below about 3 / N; tokens of one text
    are not independent, and the true bound is wider.

    The interval is `formulas.intervals.jackknife`: at 0.95 it covered 0.93 to 0.98 with 8 and 16 folds in simulation.
    """
    data = read(source, "routing", "load", "tokens", by_label=by_label)
    load, tokens = checked_load(data), data["tokens"]
    sizes = np.unique(np.geomspace(1, max(1, int(tokens.sum("fold").max())), _CURVE).astype(np.int64))

    def curve(chose: xr.DataArray, n: xr.DataArray) -> xr.DataArray:
        """The rarefaction curve, constant beyond the number of tokens read."""
        out = along(["expert"], formulas.unused, chose, n, out=["sample_size"], sizes=sizes)
        return out.assign_coords(sample_size=sizes).fillna((chose == 0).sum("expert"))

    within, name = (0, data.sizes["expert"]), "experts not yet used"
    variables = estimated(
        "unused", curve, (load, tokens), tokens, units="expert", long_name=name, level=level, within=within
    )
    variables = {name: array.where(array["sample_size"] <= tokens.sum("fold")) for name, array in variables.items()}
    never = load.sum("fold") == 0
    variables["unused_final"] = described(never.sum("expert"), "expert", "experts never used")
    variables["never_used"] = described(never, "1", "expert was never used")
    out = result(data, variables)
    out["sample_size"].attrs.update(units="token", long_name="tokens read")
    return out


def checked_load(data: xr.Dataset) -> xr.DataArray:
    """Return the loads; raises InconsistentRecording unless they add up to top_k slots per token."""
    load, tokens = data["load"], data["tokens"]
    top_k = data.attrs.get("top_k")
    if top_k is not None and not bool((load.sum("expert") == int(top_k) * tokens).all()):
        raise InconsistentRecording(
            f"The loads do not add up to top_k={top_k} slots per token in every layer and fold.\n{RECORD_AGAIN}"
        )
    return load
