"""Time and memory of layers."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.plots.base.drawing import colours_of, end_labels, need, quantity, strip_axes
from qwenlab.plots.base.panels import ManyAxes, layer_ticks, layer_width, legend_above, names_of, panel, panels
from qwenlab.plots.base.ticks import binary_scale, format_ticks
from qwenlab.plots.style import COLOURS, GREY, LABELS, style

_STRENGTH = {"mixer": 1.0, "mlp": 0.5, "rest": 0.22}
_PARTS = {"mixer": "mixer", "mlp": "MLP", "rest": "rest"}
_LETTER = 0.0108  # width, as a share of the bar
_STORES = {
    "kv": ("KV cache", COLOURS[ATTENTION], "o"),
    "recurrent": ("recurrent state", COLOURS[DELTANET], "s"),
    "convolution": ("convolution state", GREY, "^"),
}


@style()
def time_by_kind(statistics: xr.Dataset, *, axes: ManyAxes = None) -> Figure:
    """Shares of the layers' time: by kind of mixer and part of layer, and by layer for each measured phase.

    statistics  of stats.time_by_kind. Colours are those of the kinds; mixer, MLP and rest are ever paler
    axes        one, and one more for each measured phase, above each other
    """
    data = need(statistics, "time_by_kind", "kind_share", "part_share")
    data = data.dropna("phase", how="all", subset=["kind_share"])
    phases = names_of(data, "phase")
    ratios = [0.3 + 0.4 * len(phases), *[1.5] * len(phases)]
    shown = panels(axes, (len(ratios), 1), layer_width(data, least=7.5), 0.6 + sum(ratios), height_ratios=ratios)
    above, *below = shown.axes
    for row, phase in enumerate(phases):
        _stacked_bar(above, row, data["kind_share"].sel(phase=phase))
    above.set_yticks(range(len(phases)), labels=phases)
    above.invert_yaxis()
    above.xaxis.set_major_formatter(PercentFormatter(1))
    strip_axes(above)
    above.set(title="Share of layer time", xlim=(0, 1))
    for ax, phase in zip(below, phases, strict=True):
        _by_layer(ax, data["part_share"].sel(phase=phase))
        ax.set_ylabel(f"{phase}\n(share)")
    layer_ticks(below[-1].xaxis, data)
    parts = [Patch(color="black", alpha=alpha, linewidth=0, label=_PARTS[part]) for part, alpha in _STRENGTH.items()]
    kinds = [Patch(color=COLOURS[kind], label=LABELS[kind]) for kind in names_of(data, "mixer_kind")]
    legend_above(below[0], kinds + parts)
    return shown.figure


def _stacked_bar(ax: Axes, row: int, share: xr.DataArray) -> None:
    """Draw shares [mixer_kind, part] end to end, with their names where these fit."""
    start = 0.0
    for kind in share["mixer_kind"].values.tolist():
        for part, alpha in _STRENGTH.items():
            width = float(share.sel(mixer_kind=kind, part=part))
            ax.barh(row, width, left=start, color=COLOURS[kind], alpha=alpha, height=0.75, linewidth=0)
            names = (f"{LABELS[kind]} {_PARTS[part]} {width:.0%}", f"{_PARTS[part]} {width:.0%}", f"{width:.0%}", "")
            text = next(name for name in names if len(name) * _LETTER <= width)
            colour = "white" if kind == DELTANET and part == "mixer" else "0.1"
            ax.text(start + width / 2, row, text, ha="center", va="center", fontsize=8, color=colour)
            start += width


def _by_layer(ax: Axes, share: xr.DataArray) -> None:
    """Draw shares [layer, part] as stacked columns in the colours of the kinds."""
    layers, colours = np.arange(share.sizes["layer"]), colours_of(share)
    base = np.zeros(len(layers))
    for part, alpha in _STRENGTH.items():
        height = share.sel(part=part).values
        ax.bar(layers, height, bottom=base, color=colours, alpha=alpha, width=0.8, linewidth=0)
        base = base + height
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=1 if base.max() < 0.04 else 0))
    ax.set(xlim=(-0.6, len(layers) - 0.4), xticks=[])


@style()
def memory(statistics: xr.Dataset, *, ax: Axes | None = None) -> Figure:
    """Bytes of KV cache and states by context length: lines are predicted, marks are measured.

    statistics  of stats.memory
    """
    data = need(statistics, "memory", "predicted", "measured")
    shown, ax = panel(ax, 6.0, 3.4, grid="y")
    context = data["context"]
    stores = names_of(data, "store")
    for store in stores:
        _, colour, marker = _STORES[store]
        here = data.sel(store=store)
        ax.plot(context, here["predicted"].where(here["predicted"] > 0), color=colour)
        ax.scatter(context, here["measured"].where(here["measured"] > 0), color=colour, marker=marker, s=16, zorder=3)
    binary_scale(ax.xaxis)
    binary_scale(ax.yaxis)
    format_ticks(ax.yaxis, _bytes)
    title = "Memory by context: lines predicted, marks measured"
    ax.set(title=title, xlabel=quantity(context), ylabel="memory (bytes)")
    last = data.isel(context_point=-1)
    ends = [(float(last["measured"].sel(store=store)), *_STORES[store][:2]) for store in stores]
    end_labels(ax, [end for end in ends if end[0] > 0])
    return shown.figure


def _bytes(value: float) -> str:
    """Format a number of bytes: 64 KiB, 1.5 GiB."""
    for size, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} B"
