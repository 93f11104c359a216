"""Statistics over all texts and by label, and numbers in words, for the views."""

from __future__ import annotations

import math
from collections.abc import Callable

import xarray as xr
from ipywidgets import Dropdown

from qwenlab.stats.base.source import Source
from qwenlab.widgets.explorer import choice

EVERY = "all texts"
"""The label of all texts together."""

_UNITS = {"1": "", "token": "tokens", "nat": "nats"}


def by_label(statistic: Callable[..., xr.Dataset], source: Source) -> xr.Dataset:
    """A statistic along `label`: over all texts, and for each label if there are several."""
    together = statistic(source).expand_dims(label=[EVERY])
    apart = statistic(source, by_label=True)
    if apart.sizes["label"] < 2:
        return together
    return xr.concat([together, apart], "label", data_vars="all", coords="different", compat="equals", join="exact")


def label_choice(statistic: xr.Dataset) -> Dropdown:
    """A drop-down list of the labels of a statistic."""
    return choice("Texts", statistic["label"].values.tolist(), "the texts, by their label")


def in_words(statistic: xr.Dataset, *names: str) -> str:
    """Numbers with their units and intervals: "write strength 0.41 [0.38, 0.44]; entropy 1.2 nats"."""
    return "; ".join(_in_words(statistic, name) for name in names)


def _in_words(statistic: xr.Dataset, name: str) -> str:
    value, about = float(statistic[name]), statistic[name].attrs
    if math.isnan(value):
        return f"{about['long_name']} not measured"
    text = f"{about['long_name']} {value:.3g} {_UNITS.get(about['units'], about['units'])}".rstrip()
    bounds = statistic.get(f"{name}_interval")
    if bounds is None or bool(bounds.isnull().any()):
        return text
    return f"{text} [{float(bounds[0]):.3g}, {float(bounds[1]):.3g}]"
