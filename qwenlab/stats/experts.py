"""How evenly experts are used, how many at a time, and which never."""

from __future__ import annotations

import numpy as np
import xarray as xr

from qwenlab.errors import InconsistentRecording
from qwenlab.stats.base.source import (
    Source,
    along,
    bounds,
    check_level,
    described,
    estimated,
    ratio,
    read,
    result,
    statistic,
)
from qwenlab.stats.formulas import experts as formulas
from qwenlab.stats.formulas.information import entropy
from qwenlab.stats.formulas.resampling import bootstrap, fold_draws

_CURVE = 32  # points of a rarefaction curve


@statistic
def expert_load(source: Source, *, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """How the chosen slots (top_k a token) spread over the experts, with intervals.

    share               [layer, expert] share of slots; even_share is 1 / E, what each of E experts would have
    weight_share        [layer, expert] share of the routing weight
    variation           [layer] coefficient of variation of the loads over experts: 0 when even
    normalised_entropy  [layer] entropy of the shares over ln E: 1 when even

    A finite sample is never quite even: with N slots, chance alone gives a variation of about sqrt(E / N).
    """
    data = read(source, "routing", "load", "weight_sum", "tokens", by_label=by_label)
    load = checked_load(data)
    slots = load.sum("expert")
    weight = data["weight_sum"]
    variables = {
        **estimated(
            "share", ratio, (load, slots), slots, units="share of slots", long_name="load", level=level, within=(0, 1)
        ),
        **estimated(
            "weight_share",
            ratio,
            (weight, weight.sum("expert")),
            slots,
            units="share of weight",
            long_name="routing weight",
            level=level,
            within=(0, 1),
        ),
        **estimated(
            "variation",
            lambda x: along(["expert"], formulas.variation, x),
            (load,),
            slots,
            units="1",
            long_name="coefficient of variation of the loads",
            level=level,
            within=(0, np.inf),
        ),
        **estimated(
            "normalised_entropy",
            lambda x: along(["expert"], entropy, x) / np.log(x.sizes["expert"]),
            (load,),
            slots,
            units="share of ln E",
            long_name="entropy of the load",
            level=level,
            within=(0, 1),
        ),
        "even_share": described(xr.DataArray(1 / data.sizes["expert"]), "share of slots", "even spread"),
    }
    return result(data, variables)


@statistic
def distinct_experts(source: Source, *, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """How many experts a window of n neighbouring tokens needs, by [layer, window], with intervals.

    distinct      mean number of distinct experts in aligned windows of n tokens
    independent   what n tokens drawn for themselves from the same load would need: sum over experts of 1 - (1 - p)^n,
                  p the share of tokens that chose the expert
    relative      distinct / independent: below 1 where neighbours share experts (weights read once serve them all)

    With several labels added up, texts that differ already bring `relative` under 1; by_label=True takes that out.
    """
    data = read(source, "routing", "distinct_sum", "windows", "load", "tokens", by_label=by_label)
    load, windows, tokens = checked_load(data), data["windows"], data["tokens"]

    def independent(chose: xr.DataArray, n: xr.DataArray) -> xr.DataArray:
        each = ratio(chose, n)
        return along(["expert", "window"], formulas.distinct_if_independent, each, data["window"], out=["window"])

    def relative(distinct: xr.DataArray, n: xr.DataArray, chose: xr.DataArray, read_: xr.DataArray) -> xr.DataArray:
        return ratio(distinct, n) / independent(chose, read_)

    sums, most = (data["distinct_sum"], windows), (0.0, float(data.sizes["expert"]))
    variables = {
        **estimated(
            "distinct", ratio, sums, windows, units="expert", long_name="distinct experts", level=level, within=most
        ),
        **estimated(
            "independent",
            independent,
            (load, tokens),
            tokens,
            units="expert",
            long_name="distinct experts of independent tokens",
            level=level,
            within=most,
        ),
        **estimated(
            "relative",
            relative,
            (*sums, load, tokens),
            windows,
            units="1",
            long_name="distinct experts over those of independent tokens",
            level=level,
            within=(0, np.inf),
        ),
    }
    return result(data, variables)


@statistic
def unused_experts(
    source: Source, *, by_label: bool = False, level: float = 0.95, draws: int = 200, seed: int = 0
) -> xr.Dataset:
    """Experts that no token chose, and how their number fell with the number of tokens read.

    unused        [layer, sample_size] experts expected to be unused after n tokens, the n drawn at random from those
                  read (rarefaction, exact); its interval from bootstrap draws of folds, moved onto the estimate. At
                  level 0.95 it covered 0.9 of the time in simulation, and 0.7 to 0.8 at the curve's very end.
    unused_final  [layer] experts unused after all tokens
    never_used    [layer, expert] bool: which

    Where the curve still falls at its end, the unused experts are a matter of how much was read, not of the model. An
    expert unused in N independent tokens has, at level 0.95, a share of tokens below about 3 / N; tokens of one text
    are not independent, and the true bound is wider.
    """
    check_level(level)
    data = read(source, "routing", "load", "tokens", by_label=by_label)
    load, tokens = checked_load(data), data["tokens"]
    total = tokens.sum("fold")
    sizes = np.unique(np.geomspace(1, max(1, int(total.max())), _CURVE).astype(np.int64))

    def curve(chose: np.ndarray, n: np.ndarray) -> np.ndarray:
        return formulas.unused(chose, n, sizes)

    def interval(chose: np.ndarray, n: np.ndarray) -> np.ndarray:
        """[..., size, bound] from loads [..., fold, expert] and tokens [..., fold]."""
        times = fold_draws(n.shape[-1], draws, np.random.default_rng(seed))
        whole = curve(chose.sum(axis=-2), n.sum(axis=-1))
        drawn = np.stack([_drawn_curve(chose, n, t, sizes) for t in times])
        return np.clip(bootstrap(whole, drawn, level), 0, chose.shape[-1])

    at = {"sample_size": sizes}
    unused = along(["expert"], curve, load.sum("fold"), total, out=["sample_size"]).assign_coords(at)
    ends = along(["fold", "expert"], interval, load, tokens, out=["sample_size", "bound"]).assign_coords(at)
    never = load.sum("fold") == 0
    how = {"interval": "bootstrap over folds, moved onto the estimate", "level": level, "draws": draws, "seed": seed}
    variables = {
        "unused": described(unused, "expert", "experts not yet used"),
        "unused_interval": described(bounds(ends), "expert", "experts not yet used, interval", **how),
        "unused_final": described(never.sum("expert"), "expert", "experts never used"),
        "never_used": described(never, "1", "expert was never used"),
    }
    out = result(data, variables)
    out["sample_size"].attrs.update(units="token", long_name="tokens read")
    return out


def _drawn_curve(chose: np.ndarray, n: np.ndarray, times: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The curve of folds taken so many times; beyond their own number of tokens, its end."""
    tokens = (n * times).sum(axis=-1)
    curve = formulas.unused((chose * times[:, None]).sum(axis=-2), tokens, sizes)
    end = (((chose * times[:, None]).sum(axis=-2)) == 0).sum(axis=-1)
    return np.where(np.isnan(curve), end[..., None], curve)


def checked_load(data: xr.Dataset) -> xr.DataArray:
    """The loads; raises InconsistentRecording unless they add up to top_k a token."""
    load, tokens = data["load"], data["tokens"]
    top_k = data.attrs.get("top_k")
    if top_k is not None and not bool((load.sum("expert") == int(top_k) * tokens).all()):
        raise InconsistentRecording(
            f"The loads do not add up to top_k={top_k} slots a token in every layer and fold.\n"
            "Make the recording again; do not edit or cut one of its variables."
        )
    return load
