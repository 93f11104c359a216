"""`explore_layers`: the distances, gates and writing of one mixer head at a time."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.errors import ProbeNotRecorded
from qwenlab.plots.base.ticks import binary, format_ticks
from qwenlab.plots.gates import equal_edges
from qwenlab.plots.style import COLOURS, LABELS, new_figure
from qwenlab.record.recording import Recording
from qwenlab.stats.attention import attention_distance
from qwenlab.stats.deltanet import half_life, writing
from qwenlab.stats.gates import gates, has_gates
from qwenlab.widgets.explorer import Drawing, Explorer, mixer_choices
from qwenlab.widgets.labels import by_label, in_words, label_choice

_MASSES = {"first_mass": "first token", "previous_mass": "previous token", "self_mass": "itself"}
_COARSE = 4  # adjacent bins of 128


def explore_layers(recording: Recording) -> Explorer:
    """Choose a layer, a head and the texts, and see statistics of the head; needs only the recording.

    DeltaNet   shares of tokens by half-life, write strength and mean value of the output gate
    attention  shares of attention by distance, mean value of the output gate, and attention to the usual targets

    The other heads of the layer are thin lines. Raises ProbeNotRecorded for a recording without either kind of mixer.
    """
    watched = {kind: _STATISTICS[kind] for kind in _NODES if _NODES[kind] in recording}
    if not watched:
        raise ProbeNotRecorded(
            f"This recording of {recording.checkpoint} has neither a deltanet nor an attention node.\n"
            "Watch with DeltaNet(), Attention() or both."
        )
    statistics = {
        kind: [
            by_label(one, recording[_NODES[kind]])
            for one in several
            if one is not gates or has_gates(recording, _NODES[kind])
        ]
        for kind, several in watched.items()
    }
    kinds = {layer: kind for kind, (first, *_) in statistics.items() for layer in first["layer"].values.tolist()}

    layers, heads = mixer_choices(kinds, lambda layer: statistics[kinds[layer]][0]["head"].values.tolist())
    texts = label_choice(statistics[kinds[layers.value]][0])

    def draw() -> Drawing:
        kind = kinds[layers.value]
        selected = [one.sel(layer=layers.value, label=texts.value) for one in statistics[kind]]
        layer, head = xr.merge(selected, compat="override"), heads.value
        title = f"layer {layers.value} · {LABELS[kind]} · head {head} · {texts.value}"
        figure = new_figure(10, 2.8)
        left, middle, right = figure.subplots(1, 3)
        draw_two, names = _DRAW[kind]
        draw_two(left, middle, layer, head)
        left.set_title(title)
        if "mean_gate_share" in layer:
            _by_unit(right, layer["mean_gate_share"], head, COLOURS[kind], "mean value of the output gate")
        else:
            right.set_axis_off()
            right.set_title("no output gate", fontsize="small")
        shown = (name for name in names if name in layer)
        return Drawing(figure, f"{title}: {in_words(layer.sel(head=head), *shown)}.")

    return Explorer({"layer": layers, "head": heads, "label": texts}, draw)


def _draw_deltanet(reach: Axes, written: Axes, layer: xr.Dataset, head: int) -> None:
    lower = layer["half_life_bin"].values
    lives = np.append(lower, lower[-1] ** 2 / lower[-2])
    _heads(reach, layer["half_life_share"], lives, head, COLOURS[DELTANET])
    filled = np.flatnonzero(layer["half_life_share"].max("head"))
    reach.set_xscale("log", base=2)
    reach.xaxis.set_major_locator(LogLocator(base=2, numticks=7))
    format_ticks(reach.xaxis, binary)
    reach.set_xlim(lives[max(filled[0] - 2, 0)], lives[min(filled[-1] + 3, len(lives) - 1)])
    reach.set(xlabel="half-life of a token's decay (tokens)", ylabel="share of tokens")
    _by_unit(written, layer["beta_share"], head, COLOURS[DELTANET], "write strength β")


def _draw_attention(reach: Axes, targets: Axes, layer: xr.Dataset, head: int) -> None:
    lower, share = layer["distance_bin"].values, layer["distance_share"]
    last = int(np.flatnonzero(share.max("head")).max(initial=0)) + 1
    _heads(reach, share[:, :last], np.arange(last + 1) - 0.5, head, COLOURS[ATTENTION])
    ticks = range(0, last, max(1, last // 8))
    reach.set_xticks(list(ticks), [binary(lower[tick]) for tick in ticks])
    reach.set(xlabel="distance from query to key, from (tokens)", ylabel="share of attention")
    _bars(targets, layer.sel(head=head))


def _heads(axes: Axes, share: xr.DataArray, edges: np.ndarray, head: int, colour: str) -> None:
    """The shares [head, bin] of one head, filled, in front of the other heads."""
    for other in share["head"].values:
        if other != head:
            axes.stairs(share.sel(head=other), edges, color="0.8", linewidth=0.6)
    axes.stairs(share.sel(head=head), edges, color=colour, fill=True, alpha=0.75)
    axes.set_ylim(bottom=0)


def _bars(axes: Axes, head: xr.Dataset) -> None:
    """Attention to the usual targets, with intervals."""
    means = np.array([float(head[name]) for name in _MASSES])
    ends = np.array([head[f"{name}_interval"].values for name in _MASSES])
    reach = np.nan_to_num(np.abs(ends.T - means))
    axes.barh(list(_MASSES.values()), means, xerr=reach, color=COLOURS[ATTENTION], alpha=0.75, ecolor="0.3")
    axes.invert_yaxis()
    axes.set(xlabel="attention to (share)", xlim=(0, None))


def _by_unit(axes: Axes, share: xr.DataArray, head: int, colour: str, label: str) -> None:
    """The shares [head, bin] over equal bins from 0, a few of which are drawn as one."""
    share = share.coarsen({share.dims[1]: _COARSE}).sum()
    edges = equal_edges(share, share.dims[1])
    _heads(axes, share, edges, head, colour)
    axes.set(xlabel=label, ylabel="share of tokens", xlim=(0, edges[-1]))


_NODES = {DELTANET: "deltanet", ATTENTION: "attention"}
_STATISTICS = {DELTANET: (gates, half_life, writing), ATTENTION: (gates, attention_distance)}
_DRAW = {
    DELTANET: (_draw_deltanet, ("half_life_mean_log", "beta", "mean_gate", "error_ratio")),
    ATTENTION: (_draw_attention, ("distance", "entropy", *_MASSES, "mean_gate")),
}
