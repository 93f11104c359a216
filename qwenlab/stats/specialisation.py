"""Specialisation of experts: their information on the labels of tokens, compared with shuffled labels."""

from __future__ import annotations

import numpy as np
import xarray as xr

from qwenlab.errors import NothingMeasured
from qwenlab.stats.base.source import Source, read, statistic
from qwenlab.stats.base.sums import Estimate, estimates
from qwenlab.stats.base.variables import Row, check_level, result, variables as described_all
from qwenlab.stats.experts import checked_load
from qwenlab.stats.formulas.information import (
    entropy,
    mutual_information,
    permuted_information,
)
from qwenlab.stats.formulas.intervals import central
from qwenlab.stats.routing import BITS


@statistic
def specialisation(source: Source, *, permutations: int = 1000, level: float = 0.95, seed: int = 0) -> xr.Dataset:
    """Mutual information of a token's label and one of its experts, by [layer], compared with shuffled labels.

    information           mutual information of label and expert over the chosen slots, bits (plug-in)
    shuffled              mean of the same with shuffled labels: its bias, and the usual difference between texts
    shuffled_interval     central interval of the shuffled values, of probability `level`
    p_value               (1 + shufflings at least as informative) / (1 + permutations)
    specialisation        (information - shuffled) / (entropy of the labels - shuffled): 0 by chance, 1 if an expert
                          determines the label
    label_entropy         entropy of the labels over the slots, bits
    log_odds              [layer, expert, label] ln of the odds ratio that a token of the label chooses the expert,
                          against the other labels; half a token is added to each count. With an interval over folds.

    Labels are shuffled between blocks of (label, fold), which keep texts whole: tokens of one text resemble each other.
    """
    check_level(level)
    data = read(source, "routing", "load", "tokens")
    load = checked_load(data)
    blocks, label = _blocks(load)
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(len(label)) for _ in range(permutations)])
    labels = data.sizes["label"]
    shuffled = np.stack([permuted_information(one, label, labels, order) for one in blocks])  # [layer, permutation]
    counts = load.sum("fold").transpose("layer", "label", "expert").values
    information = mutual_information(counts)
    of_labels = entropy(counts.sum(axis=-1))
    bias = shuffled.mean(axis=-1)
    excess = information - bias
    as_informative = (shuffled >= information[:, None] - 1e-12).sum(axis=-1)
    of, between = ("layer",), central(shuffled, level) * BITS
    table = {
        "information": Row(information * BITS, of, "bit", "information of an expert on the label"),
        "shuffled": Row(bias * BITS, of, "bit", "the same with shuffled labels", between),
        "p_value": Row((1 + as_informative) / (1 + permutations), of, "1", "probability by shuffling alone"),
        "specialisation": Row(excess / (of_labels - bias), of, "share of label entropy", "specialisation"),
        "label_entropy": Row(of_labels * BITS, of, "bit", "entropy of the labels"),
    }
    variables = described_all(table, method={"interval": "quantiles over shufflings", "level": level})
    meaning = "log odds of the expert, against other labels"
    log_odds = Estimate("nat", meaning, least=-np.inf, sums=("load", "tokens"), of=_log_odds)
    variables |= estimates(data, {"log_odds": log_odds}, level)
    out = result(data, variables).assign_coords(load["layer"].coords)
    return out.assign_attrs(permutations=permutations, seed=seed, blocks=len(label))


def _blocks(load: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Loads [layer, block, expert] of the (label, fold) blocks with tokens, and their labels [block]."""
    values = load.transpose("layer", "label", "fold", "expert").values
    label, fold = np.nonzero(values.sum(axis=(0, 3)))
    folds = np.bincount(label, minlength=values.shape[1])
    names = [str(name) for name in load["label"].values]
    if (folds > 0).sum() < 2:
        raise NothingMeasured(
            f"Specialisation compares labels, and all tokens have the same one ({names[int(label[0])]!r}).\n"
            "Label the texts, one label per domain, and read at least two domains."
        )
    if folds.max() < 2:
        raise NothingMeasured(
            f"Each label ({', '.join(names)}) was read in one fold only, so texts cannot be shuffled among labels.\n"
            "Read at least two texts per label; use eight or more for a useful control."
        )
    return values[:, label, fold], label


def _log_odds(load: xr.DataArray, tokens: xr.DataArray) -> xr.DataArray:
    """ln of the odds ratio of choosing an expert: tokens of the label against all others; NaN where either is empty."""
    other_load, other_tokens = load.sum("label") - load, tokens.sum("label") - tokens
    own, other = (
        xr.ufuncs.log((chose + 0.5) / (n - chose + 0.5)) for chose, n in ((load, tokens), (other_load, other_tokens))
    )
    return (own - other).where((tokens > 0) & (other_tokens > 0))
