"""Load of experts: how evenly they are used, how many at a time or in a block of tokens, and which are never used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument, InconsistentRecording, NothingMeasured
from qwenlab.stats.base.source import RECORD_AGAIN, Source, along, ratio, read, statistic
from qwenlab.stats.base.sums import Estimate, estimates
from qwenlab.stats.base.variables import Row, described, result, variables as described_all
from qwenlab.stats.formulas import experts as formulas
from qwenlab.stats.formulas.information import entropy

_CHOICES = ("token", "layer", "slot")
_CURVE = 32  # points of a rarefaction curve


def _entropy(load: xr.DataArray) -> xr.DataArray:
    return along(["expert"], entropy, load) / np.log(load.sizes["expert"])


def _variation(load: xr.DataArray) -> xr.DataArray:
    return along(["expert"], formulas.variation, load)


_LOAD = {
    "share": Estimate("share of slots", "load", 1, over="slots"),
    "weight_share": Estimate("share of weight", "routing weight", 1, over="weight", counts="slots"),
    "variation": Estimate("1", "coefficient of variation of the loads", sums=("load",), over="slots", of=_variation),
    "normalised_entropy": Estimate(
        "share of ln E", "entropy of the load", 1, sums=("load",), over="slots", of=_entropy
    ),
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
    variables = estimates({**sums, "load": load}, _LOAD, level)
    variables["even_share"] = described(xr.DataArray(1 / data.sizes["expert"]), "share of slots", "uniform load")
    return result(data, variables)


@statistic
def distinct_experts(source: Source, *, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """Number of distinct experts in windows of n neighbouring tokens, by [layer, window], with intervals.

    distinct      mean number of distinct experts in aligned windows of n tokens
    independent   the same for n independent tokens of the same load: sum over experts of 1 - (1 - p)^n,
                  p the share of tokens that chose the expert
    relative      distinct / independent: below 1 if neighbours share experts (weights read once serve them all)

    With several labels added up, differences between texts bring `relative` below 1, too: give by_label=True.
    """
    data = read(source, "routing", "distinct_sum", "windows", "load", "tokens", by_label=by_label)
    checked_load(data)

    def independent(chose: xr.DataArray, n: xr.DataArray) -> xr.DataArray:
        share = ratio(chose, n)
        return along(["expert", "window"], formulas.distinct_if_independent, share, data["window"], out=["window"])

    def relative(distinct: xr.DataArray, n: xr.DataArray, chose: xr.DataArray, read_: xr.DataArray) -> xr.DataArray:
        return ratio(distinct, n) / independent(chose, read_)

    most, of_load = data.sizes["expert"], ("load", "tokens")
    quotient = "distinct experts over those of independent tokens"
    table = {
        "distinct": Estimate("expert", "distinct experts", most, over="windows"),
        "independent": Estimate("expert", "distinct experts of independent tokens", most, sums=of_load, of=independent),
        "relative": Estimate("1", quotient, over="windows", sums=("distinct_sum", "windows", *of_load), of=relative),
    }
    return result(data, estimates(data, table, level))


@statistic
def unused_experts(source: Source, *, by_label: bool = False, level: float = 0.95) -> xr.Dataset:
    """Experts that no token chose, and how their number falls with the number of tokens read.

    unused        [layer, sample_size] expected number of unused experts after n tokens, drawn at random from those
                  read (rarefaction, exact), with its interval
    unused_final  [layer] number of experts unused after all tokens
    never_used    [layer, expert] bool: the expert is unused after all tokens

    If the curve still falls at its end, the number of unused experts depends on how much was read, not on the model.
    An expert unused in N independent tokens has, at level 0.95, a share of tokens below about 3 / N; the tokens of a
    text are not independent.
    """
    data = read(source, "routing", "load", "tokens", by_label=by_label)
    load, tokens = checked_load(data), data["tokens"]
    sizes = np.unique(np.geomspace(1, max(1, int(tokens.sum("fold").max())), _CURVE).astype(np.int64))

    def curve(chose: xr.DataArray, n: xr.DataArray) -> xr.DataArray:
        """The rarefaction curve, constant beyond the number of tokens read."""
        out = along(["expert"], formulas.unused, chose, n, out=["sample_size"], sizes=sizes)
        return out.assign_coords(sample_size=sizes).fillna((chose == 0).sum("expert"))

    unused = Estimate("expert", "experts not yet used", data.sizes["expert"], sums=("load", "tokens"), of=curve)
    variables = estimates(data, {"unused": unused}, level)
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


@statistic
def expert_union(choices: xr.DataArray | np.ndarray, *, widths: Sequence[int] = tuple(range(1, 10))) -> xr.Dataset:
    """Number of distinct experts in blocks of n consecutive tokens, from the choices of each token.

    distinct         [layer, width] mean over all blocks of n tokens within one text
    independent      [layer, width] the same for unrelated tokens: sum over experts of 1 - (1 - share)^n
    experts_touched  [width] mean of `distinct` over layers: for the costs of `stats.speedup`
    blocks           [width] number of blocks

    choices  int [token, layer, slot], index of a routed expert; no block spans two texts, by the coordinate `text`
    widths   n; drafting d tokens verifies blocks of d + 1

    Raises BadArgument for other shapes, values and widths, and NothingMeasured if no text is as long as a block.
    """
    chosen = _checked(choices)
    if not widths or min(widths) < 1:
        raise BadArgument(f"widths={list(widths)!r}: give the numbers of tokens per block, such as 1 to 9.")
    text = chosen["text"].values if "text" in chosen.coords else np.zeros(chosen.sizes["token"])
    sizes = np.asarray(widths)
    blocks = np.array([(text[n - 1 :] == text[: max(0, len(text) - n + 1)]).sum() for n in sizes])
    if not blocks.all():
        raise NothingMeasured(
            f"No text has {sizes[blocks == 0].min()} tokens, the size of a block.\nRead longer texts."
        )
    by_layer = [chosen.isel(layer=layer).values for layer in range(chosen.sizes["layer"])]
    distinct = np.stack([formulas.distinct_in_blocks(layer, text, sizes) for layer in by_layer])
    shares = [np.bincount(layer.ravel()) / len(layer) for layer in by_layer]
    independent = np.stack([formulas.distinct_if_independent(share, sizes) for share in shares])
    by, width = ("layer", "width"), ("width",)
    table = {
        "distinct": Row(distinct, by, "expert", "distinct experts in a block"),
        "independent": Row(independent, by, "expert", "distinct experts of unrelated tokens"),
        "experts_touched": Row(distinct.mean(axis=0), width, "expert", "experts touched, mean over layers"),
        "blocks": Row(blocks, width, "block", "blocks"),
    }
    layer = chosen["layer"].values if "layer" in chosen.coords else np.arange(len(by_layer))
    at = {"layer": layer, "width": ("width", sizes, {"units": "token", "long_name": "tokens in a block"})}
    return xr.Dataset(described_all(table), at, {"sample": "{}"})


def _checked(choices: xr.DataArray | np.ndarray) -> xr.DataArray:
    """Return choices [token, layer, slot] with their coordinates; raises BadArgument."""
    if not isinstance(choices, xr.DataArray):
        values = np.asarray(choices)
        choices = xr.DataArray(values, dims=_CHOICES if values.ndim == len(_CHOICES) else None)
    if set(choices.dims) != set(_CHOICES) or choices.dtype.kind not in "iu" or not choices.size or choices.min() < 0:
        raise BadArgument(
            f"choices is {choices.dtype} {list(choices.shape)} with dims {', '.join(map(str, choices.dims))}.\n"
            f"Give the indices of the chosen experts, from 0: int [{', '.join(_CHOICES)}]."
        )
    return choices.transpose(*_CHOICES)
