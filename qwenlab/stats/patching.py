"""Effects of activation patching by site and position, over pairs of texts."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import xarray as xr

from qwenlab.errors import NothingMeasured
from qwenlab.stats.base.ablation_effects import FACTS, as_objects
from qwenlab.stats.base.source import Source, read, statistic
from qwenlab.stats.base.variables import Bootstrap, Row, variables
from qwenlab.stats.formulas import paired

_NEEDS = ("logprob", "source_logprob", "target_logprob", "source_token", "target_token", "layer", "kind")
_EFFECT = "rise of the log-probability of the source's answer"


@statistic
def patching(source: Source, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> xr.Dataset:
    """Effect of each patched value on the log-probability of the source's answer, by [site, position].

    effect       mean over pairs of logprob - target_logprob, nat: positive if the value favours the source's answer
    total        mean over pairs of source_logprob - target_logprob, nat: the effect of patching the whole source
    restored     effect / total, a ratio of means, not a mean of ratios: 0 as in the target, 1 as in the source, and not
                 bounded by these (Zhang and Nanda 2024, arXiv:2309.16042, for log-probabilities). NaN if total is not
                 significantly above 0: the source does not make its answer likelier, so there is nothing to restore
    p_max        two-sided, by flipping the signs of whole pairs, corrected for all sites and positions by the maximum
                 statistic (`formulas.paired.max_p`); at least 2^(1 - pairs)
    significant  p_max < 1 - level

    Coordinates: layer, kind and part (mixer, residual, ...) by site; source_token and target_token by position, if all
    pairs have the same token there, else ""; differs, whether they differ in any pair.

    level  of the intervals <name>_interval: `formulas.intervals.bootstrap` over whole pairs; NaN below two pairs

    Raises NothingMeasured if nothing was patched, or a log-probability is NaN or infinite.
    """
    how = Bootstrap(level, resamples, seed, "pairs")
    data = read(source, "patching", *_NEEDS)
    patched = data["logprob"].transpose("site", "position", "pair").values.astype(np.float64)
    whole, before = (data[f"{name}_logprob"].values.astype(np.float64) for name in ("source", "target"))
    _check(patched, whole, before)
    (sites, positions, pairs), apart = patched.shape, whole - before
    effects = (patched - before).reshape(-1, pairs)
    total = apart.mean()
    rows = np.concatenate([effects, apart[None]]).T
    ends = how.interval(rows, lambda sums: sums / pairs)
    known, restored = total > 0 and not ends[-1, 0] <= 0, effects.mean(axis=1) / total
    ratio = how.interval(rows, lambda sums: sums[..., :-1] / sums[..., -1:])
    p = paired.max_p(effects, draws=max(resamples, int(np.ceil(20 / (1 - level)))), seed=seed)

    def by_site(values: np.ndarray) -> np.ndarray:
        return values.reshape(sites, positions, *values.shape[1:])

    restored, ratio = (by_site(np.where(known, values, np.nan)) for values in (restored, ratio))
    tested = "p, by flipping the signs of pairs, corrected for all sites and positions"
    dims = ("site", "position")
    table = {
        "total": Row(total, (), "nat", f"{_EFFECT}, of the whole source", ends[-1]),
        "effect": Row(by_site(effects.mean(axis=1)), dims, "nat", _EFFECT, by_site(ends[:-1])),
        "restored": Row(restored, dims, "1", "share restored", ratio),
        "p_max": Row(by_site(p), dims, "1", tested),
        "significant": Row(by_site(p < 1 - level), dims, "1", "differs from the target"),
    }
    facts = {name: data.attrs[name] for name in (*FACTS, "heads") if name in data.attrs}
    tests = {"pairs": pairs, "hypotheses": len(effects), "sample": "{}"}
    return xr.Dataset(variables(table, method=how.attrs), _coordinates(data), facts | tests | how.attrs)


def _check(patched: np.ndarray, whole: np.ndarray, before: np.ndarray) -> None:
    if not patched.size:
        raise NothingMeasured(
            f"Nothing was patched: sites, positions and pairs are {list(patched.shape)}.\nGive at least one of each."
        )
    wrong = ~np.isfinite(patched).all(axis=(0, 1)) | ~np.isfinite(whole) | ~np.isfinite(before)
    if wrong.any():
        raise NothingMeasured(
            f"Log-probabilities of {int(wrong.sum())} of {len(wrong)} pairs are NaN or infinite, first of pair "
            f"{int(wrong.argmax())}.\nCheck the model's logits there, or leave the pair out."
        )


def _coordinates(data: xr.Dataset) -> dict[str, Any]:
    names = data["site"].values.astype(str)
    source, target = (
        data[f"{name}_token"].transpose("pair", "position").values.astype(str) for name in ("source", "target")
    )
    shared = {
        name: [row[0] if len(set(row)) == 1 else "" for row in tokens.T.tolist()]
        for name, tokens in (("source_token", source), ("target_token", target))
    }
    return {
        "site": as_objects(names),
        "layer": ("site", data["layer"].values),
        "kind": ("site", as_objects(data["kind"].values)),
        "part": ("site", np.array([re.sub(r"^layers\.\d+\.", "", name) for name in names], object)),
        "position": data["position"].variable,
        **{name: ("position", np.array(tokens, object)) for name, tokens in shared.items()},
        "differs": ("position", (source != target).any(axis=0)),
    }
