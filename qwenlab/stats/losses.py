"""Loss by class of token and domain, in nats per token and bits per byte."""

from __future__ import annotations

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument, NothingMeasured
from qwenlab.stats.base.source import Source, read, statistic
from qwenlab.stats.base.variables import Bootstrap, Row, variables
from qwenlab.stats.formulas.intervals import by_cluster

ALL = "all"
"""Name of the class of all tokens."""


@statistic
def losses(
    source: Source, *, by_domain: bool = True, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> xr.Dataset:
    """Mean loss of the tokens of each class, from the result of `qwenlab.tasks.losses`, by [domain, token_class].

    loss           nats per token: sum over the class's tokens / their number
    bits_per_byte  bits: the same sum / ln 2 / the UTF-8 bytes of these tokens. For "all" it can be compared between
                   tokenizers, for other classes only within one; NaN without bytes
    tokens         number of tokens of the class
    texts          [domain] number of texts

    Classes are "all", and every bool variable of the source: they overlap, so tokens do not add up.

    by_domain  False: the texts of all domains together, without the dimension
    level      of the intervals <name>_interval: `formulas.intervals.bootstrap` over the whole texts of a domain

    Raises BadArgument for a class named "all", and NothingMeasured without tokens or if a loss is NaN or infinite.
    """
    how = Bootstrap(level, resamples, seed)
    data = read(source, "losses", "loss", "bytes", "text", "domain")
    classes = {str(name): array.values for name, array in data.data_vars.items() if array.dtype == bool}
    if ALL in classes:
        raise BadArgument(f"A class is named {ALL!r}, the name of the class of all tokens.\nRename the variable.")
    loss, text = data["loss"].values.astype(np.float64), data["text"].values
    _check(loss, text)
    member = np.stack([np.ones(len(loss), bool), *classes.values()], axis=1)
    summed = np.stack([loss, np.ones(len(loss)), data["bytes"].values], axis=1)  # per token: nats, 1, bytes
    rows = (summed[:, :, None] * member[:, None, :]).reshape(len(loss), -1)
    domain = data["domain"].values.astype(str) if by_domain else np.full(len(loss), "")
    names = list(dict.fromkeys(domain.tolist()))
    clusters = [by_cluster(rows[domain == name], text[domain == name]) for name in names]
    sums = np.stack([some.sum(axis=0) for some in clusters])
    means, ends = _means(sums), np.stack([how.interval(some, _means) for some in clusters])
    texts, count = [len(some) for some in clusters], len(classes) + 1
    group, facts = ("domain",) if by_domain else (), {"texts": sum(texts)}
    dims = (*group, "token_class")
    table = {
        "tokens": Row(sums[:, count : 2 * count].astype(np.int64), dims, "token", "tokens of the class"),
        "texts": Row(np.array(texts), group, "text", "texts"),
        "loss": Row(means[:, :count], dims, "nat/token", "next-token loss", ends[:, :count]),
        "bits_per_byte": Row(means[:, count:], dims, "bit/byte", "bits per byte", ends[:, count:]),
    }
    at = {"token_class": ("token_class", np.array([ALL, *classes], object), {"long_name": "class of token"})}
    out = xr.Dataset(variables(table, facts, how.attrs), at, facts | how.attrs | {"sample": "{}"})
    return out.assign_coords(domain=np.array(names, object)) if by_domain else out


def _means(sums: np.ndarray) -> np.ndarray:
    """Nats per token and bits per byte by class, from sums [..., 3 class]: [..., 2 class]."""
    nats, tokens, size = np.split(sums, 3, axis=-1)
    return np.concatenate([nats / tokens, np.where(size > 0, nats / np.log(2) / size, np.nan)], axis=-1)


def _check(loss: np.ndarray, text: np.ndarray) -> None:
    if not len(loss):
        raise NothingMeasured("These losses have no tokens.\nRead at least one text of two tokens.")
    if not np.isfinite(loss).all():
        where = text[~np.isfinite(loss)]
        raise NothingMeasured(
            f"{len(where):,} of {len(loss):,} losses are NaN or infinite, the first in text {where[0]}.\n"
            "Check the interventions on the model, or leave those texts out."
        )
