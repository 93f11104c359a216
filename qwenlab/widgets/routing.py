"""`explore_routing`: the load of one expert at a time, by label, and its co-activation with others."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from qwenlab.plots.style import PALETTE, new_figure
from qwenlab.record.recording import Recording
from qwenlab.stats.experts import expert_load
from qwenlab.stats.routing import coactivation
from qwenlab.widgets.explorer import Drawing, Explorer, choice
from qwenlab.widgets.labels import by_label, in_words, label_choice

_CHOSEN, _OTHER = PALETTE[0], "0.8"
_PARTNERS = 8
_LINE: dict[str, Any] = {"color": "0.3", "linewidth": 1, "linestyle": "--"}  # at a uniform load


def explore_routing(recording: Recording) -> Explorer:
    """Choose a layer, an expert and the texts, and see the expert's load, also by label, and its co-activation.

    Needs only the recording. Raises ProbeNotRecorded for a recording without routing.
    """
    load, together = by_label(expert_load, recording), coactivation(recording)
    layers = choice("Layer", load["layer"].values.tolist(), "the layer of the router")
    experts = choice("Expert", load["expert"].values.tolist(), "the routed expert")
    texts = label_choice(load)

    def draw() -> Drawing:
        layer, expert, label = layers.value, experts.value, texts.value
        title = f"layer {layer} · expert {expert} · {label}"
        figure = new_figure(10, 2.8)
        of_all, of_labels, of_partners = figure.subplots(1, 3, width_ratios=(2, 1, 1))
        of_all.set_title(title)
        here = load.sel(layer=layer)
        _draw_all(of_all, here.sel(label=label), expert)
        _draw_labels(of_labels, here.sel(expert=expert), label)
        _draw_partners(of_partners, together["lift"].sel(layer=layer, expert=expert))
        return Drawing(figure, f"{title}: {in_words(here.sel(label=label, expert=expert), 'share')}.")

    return Explorer({"layer": layers, "expert": experts, "label": texts}, draw)


def _draw_all(axes: Axes, load: xr.Dataset, expert: int) -> None:
    """The load of every expert, with the chosen one in colour."""
    experts = load["expert"].values
    axes.bar(experts, load["share"], color=np.where(experts == expert, _CHOSEN, _OTHER), width=0.9)
    uniform = float(load["even_share"])
    axes.axhline(uniform, **_LINE)
    where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
    axes.annotate("uniform", (1, uniform), color="0.3", fontsize=8, **where)
    axes.set(xlabel="expert", ylabel="load (share of slots)", xlim=(experts[0] - 0.6, experts[-1] + 0.6))


def _draw_labels(axes: Axes, load: xr.Dataset, label: str) -> None:
    """The load of the chosen expert by label, with intervals."""
    names, share = load["label"].values, load["share"].values
    reach = np.nan_to_num(np.abs(load["share_interval"].transpose("bound", ...).values - share))
    axes.barh(names, share, xerr=reach, color=np.where(names == label, _CHOSEN, _OTHER), error_kw={"linewidth": 1})
    axes.axvline(float(load["even_share"].values.flat[0]), **_LINE)
    axes.invert_yaxis()
    axes.set(xlabel="its load (share of slots)", xlim=(0, None))


def _draw_partners(axes: Axes, lift: xr.DataArray) -> None:
    """The experts with the largest co-activation, over all texts, relative to independent choices."""
    best = lift.dropna("expert_2").sortby("expert_2").sortby(lift, ascending=False)[:_PARTNERS]
    axes.barh([f"expert {expert}" for expert in best["expert_2"].values], best, color=_OTHER)
    axes.axvline(1, **_LINE)
    axes.invert_yaxis()
    axes.set(xlabel="co-activation over chance", xlim=(0, None))
