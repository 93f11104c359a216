"""Do experts know what they read: routing against labels, beside a shuffled control."""

from __future__ import annotations

import numpy as np
import xarray as xr

from qwenlab.errors import NothingMeasured
from qwenlab.stats.base.source import Source, bounds, check_level, described, estimated, read, result, statistic
from qwenlab.stats.experts import checked_load
from qwenlab.stats.formulas.information import entropy, mutual_information, permuted_information

_BITS = 1 / np.log(2)


@statistic
def specialisation(source: Source, *, permutations: int = 1000, level: float = 0.95, seed: int = 0) -> xr.Dataset:
    """What one of a token's experts tells of its label, by [layer], beside what it tells of a shuffled one.

    information           mutual information of label and expert over the chosen slots, bits (plug-in)
    shuffled              mean of the same with labels shuffled: the bias, and what texts differ by anyway
    shuffled_interval     where `level` of the shuffled values lie
    p_value               (1 + shufflings at least as informative) / (1 + permutations)
    specialisation        (information - shuffled) / (entropy of the labels - shuffled): 0 by chance, 1 when an expert
                          names the label
    label_entropy         entropy of the labels over the slots, bits
    log_odds              [layer, expert, label] ln odds that a token of the label chooses the expert, over the same
                          for the other labels; half a token is added to each count. With an interval over folds.

    Tokens of one text resemble one another, so shuffling single tokens would call any difference between texts a
    specialisation. What changes labels here are the blocks of (label, fold): whole texts, kept together.
    """
    check_level(level)
    data = read(source, "routing", "load", "tokens")
    load, tokens = checked_load(data), data["tokens"]
    blocks, label = _blocks(load)
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(len(label)) for _ in range(permutations)])
    labels = data.sizes["label"]
    shuffled = np.stack([permuted_information(one, label, labels, order) for one in blocks])  # [layer, permutation]
    counts = load.sum("fold").transpose("layer", "label", "expert").values
    information = mutual_information(counts)
    of_labels = entropy(counts.sum(axis=-1))
    bias = shuffled.mean(axis=-1)
    ends = np.quantile(shuffled, [0.5 - level / 2, 0.5 + level / 2], axis=-1).T
    as_informative = (shuffled >= information[:, None] - 1e-12).sum(axis=-1)
    by_layer = {
        "information": (information * _BITS, "bit", "information of an expert on the label"),
        "shuffled": (bias * _BITS, "bit", "the same with shuffled labels"),
        "p_value": ((1 + as_informative) / (1 + permutations), "1", "probability by shuffling alone"),
        "specialisation": ((information - bias) / (of_labels - bias), "share of label entropy", "specialisation"),
        "label_entropy": (of_labels * _BITS, "bit", "entropy of the labels"),
    }
    variables = {
        name: described(xr.DataArray(values, dims="layer"), units, long_name)
        for name, (values, units, long_name) in by_layer.items()
    }
    spread = bounds(xr.DataArray(ends * _BITS, dims=("layer", "bound")))
    how = {"interval": "quantiles over shufflings", "level": level}
    variables["shuffled_interval"] = described(spread, "bit", "the same with shuffled labels, interval", **how)
    variables |= estimated(
        "log_odds",
        _log_odds,
        (load, tokens),
        tokens,
        units="nat",
        long_name="log odds of the expert beside other labels",
        level=level,
    )
    out = result(data, variables).assign_coords(load["layer"].coords)
    return out.assign_attrs(permutations=permutations, seed=seed, blocks=len(label))


def _blocks(load: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Loads [layer, block, expert] of the (label, fold) blocks that hold anything, and their labels [block]."""
    values = load.transpose("layer", "label", "fold", "expert").values
    label, fold = np.nonzero(values.sum(axis=(0, 3)))
    seen = np.bincount(label, minlength=values.shape[1])
    names = [str(name) for name in load["label"].values]
    if (seen > 0).sum() < 2:
        raise NothingMeasured(
            f"Specialisation compares labels, and all tokens read have one ({names[int(label[0])]!r}).\n"
            "Label what is read, one label a domain, and read at least two domains."
        )
    if seen.max() < 2:
        raise NothingMeasured(
            f"Each label ({', '.join(names)}) was read in one fold only: no texts to shuffle among labels.\n"
            "Read at least two texts a label; eight or more give a control worth the name."
        )
    return values[:, label, fold], label


def _log_odds(load: xr.DataArray, tokens: xr.DataArray) -> xr.DataArray:
    """ln of the odds ratio of choosing an expert: tokens of the label against all others; NaN where either is empty."""
    other_load, other_tokens = load.sum("label") - load, tokens.sum("label") - tokens
    both = (tokens > 0) & (other_tokens > 0)
    return (_log_odds_of(load, tokens) - _log_odds_of(other_load, other_tokens)).where(both)


def _log_odds_of(load: xr.DataArray, tokens: xr.DataArray) -> xr.DataArray:
    return xr.ufuncs.log((load + 0.5) / (tokens - load + 0.5))
