"""Attention maps of heads: the weight of each earlier token's value in the output at each token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import need, root_norm, visible
from qwenlab.plots.base.panels import ManyAxes, figure_of, panel, panels
from qwenlab.plots.style import LABELS, PALE, shades, style

_NEGATIVE = ("#B2182B", "#67001F")
"""Colours of negative weights: a red unlike the colour of either kind, colour-blind safe."""

_MANY = 2**14  # cells: larger maps are rasterized in vector formats
_SIDE = (3.2, 5.6)  # inches of a map's side, least and most
_LETTER, _LINE = 6.0, 6.6  # points: size of a token's label, and distance to the next


@style()
def attention_map(
    maps: xr.Dataset | Sequence[xr.Dataset],
    *,
    tokens: Sequence[str] | None = None,
    begin: int = 0,
    end: int | None = None,
    marks: Sequence[tuple[int, int]] = (),
    axes: ManyAxes = None,
) -> Figure:
    """Attention maps of one text, side by side, each in the shades of its kind; negative weights of DeltaNet are red.

    maps        of stats.attention_map, one or several
    tokens      names of the text's tokens; as many are written as are legible
    begin, end  positions of the first query and key, and after the last
    marks       positions (query, key) of weights to frame, such as those from questions to their answers

    Shades follow the square root of |weight|, so that small weights are visible, and end at the largest weight in the
    second half of the rows: the first rows have few weights, and those of softmax sum to 1. Larger weights look like
    that one. Raises BadArgument without maps, and for positions outside the map.
    """
    listed = [maps] if isinstance(maps, xr.Dataset) else list(maps)
    if not listed:
        raise BadArgument("attention_map(maps=[]): give at least one map of stats.attention_map.")
    checked = [need(one, "attention_map", "weight") for one in listed]
    cut = [one.where(_inside(one, begin, end), drop=True) for one in checked]
    side = _SIDE[0] if tokens is None else float(np.clip(max(c.sizes["key"] for c in cut) * _LINE / 72, *_SIDE))
    shown = panels(axes, (1, len(cut)), (side + 1.35) * len(cut), side + (0.75 if tokens is None else 0.95))
    for number, (ax, data) in enumerate(zip(shown.axes, cut, strict=True)):
        if not shown.new:
            side = min(ax.get_position().size * shown.figure.get_size_inches())
        _draw(ax, data)
        _frame(ax, data, marks)
        _label(ax, data, tokens, side, first=number == 0)
    return shown.figure


def _inside(data: xr.Dataset, begin: int, end: int | None) -> xr.DataArray:
    """Return which queries and keys are in these positions. Raises BadArgument if none is."""
    last = np.inf if end is None else end
    query, key = ((data[dim] >= begin) & (data[dim] < last) for dim in ("query", "key"))
    if not query.any() or not key.any():
        raise BadArgument(
            f"begin={begin}, end={end}: the map's queries are at positions {int(data['query'].min())} to "
            f"{int(data['query'].max())}."
        )
    return query & key


def _draw(ax: Axes, data: xr.Dataset) -> None:
    """Draw one map and its colour bar."""
    weight, kind = data["weight"].transpose("query", "key"), str(data.attrs["kind"])
    size, signed = abs(weight), kind == DELTANET
    most = float(size[size.sizes["query"] // 2 :].max()) or 1.0
    beyond = float(size.max()) > most
    norm = root_norm(-most if signed else 0.0, most)
    cells = np.ma.masked_invalid(weight.values)
    mesh = ax.pcolormesh(cells, cmap=_colours(kind), norm=norm, rasterized=cells.size > _MANY)
    ax.invert_yaxis()
    ax.set_facecolor(PALE)
    ax.set_box_aspect(float(np.clip(weight.sizes["query"] / weight.sizes["key"], 0.25, 1)))
    ax.set_title(f"layer {data.attrs['layer']}, head {data.attrs['head']} · {LABELS[kind]}")
    extend = ("both" if signed else "max") if beyond else "neither"
    bar = figure_of(ax).colorbar(mesh, ax=ax, shrink=0.85, aspect=24, pad=0.02, extend=extend)
    ends = (-most, -most / 4, 0, most / 4, most) if signed else (0, most / 16, most / 4, most)
    bar.set_ticks(list(ends), labels=[f"{end:.2g}" for end in ends])
    bar.ax.minorticks_off()
    bar.set_label("weight" if signed else "weight (probability)")


def _frame(ax: Axes, data: xr.Dataset, marks: Sequence[tuple[int, int]]) -> None:
    """Draw a frame around those of these weights that are shown."""
    rows, columns = ({int(at): number for number, at in enumerate(data[dim].values)} for dim in ("query", "key"))
    for query, key in marks:
        if query in rows and key in columns:
            corner = columns[key], rows[query]
            ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=0.9, clip_on=False))


def _label(ax: Axes, data: xr.Dataset, tokens: Sequence[str] | None, side: float, *, first: bool) -> None:
    """Label queries and keys with their tokens or positions."""
    block = int(data.attrs.get("block", 1))
    for dim, axis in (("key", ax.xaxis), ("query", ax.yaxis)):
        length = side if dim == "key" else side * min(1.0, data.sizes["query"] / data.sizes["key"])
        name_tokens(axis, data[dim].values, tokens, length)
        if tokens is None and (dim == "key" or first):
            axis.set_label_text(f"{dim} (token)" if block == 1 else f"{dim} (token, in blocks of {block})")


def name_tokens(axis: Axis, positions: np.ndarray, tokens: Sequence[str] | None, length: float) -> None:
    """Label as many tokens at these positions as are legible along an axis.

    positions  of the tokens, each one unit wide
    tokens     their names; None writes the positions
    length     of the axis, in inches
    """
    count = len(positions)
    step = max(1, int(np.ceil(count * (_LINE if tokens else 28.0) / (72 * length) - 0.05)))
    labels = [_word(tokens, int(position)) for position in positions[::step]]
    axis.set_ticks(np.arange(0, count, step) + 0.5, labels=labels)
    if tokens is not None:
        axis.set_tick_params(labelsize=_LETTER, length=1.5, pad=1.5)
        if isinstance(axis, XAxis):
            axis.set_tick_params(labelrotation=90)


def _word(tokens: Sequence[str] | None, position: int) -> str:
    """Return a token with visible spaces and ends of lines, and at most 10 characters."""
    if tokens is None:
        return str(position)
    if position >= len(tokens):
        raise BadArgument(
            f"tokens: {len(tokens)} names for a text of at least {position + 1} tokens.\nGive one name per token."
        )
    word = visible(str(tokens[position]))
    return word if len(word) <= 10 else f"{word[:9]}…"


def _colours(kind: str) -> Colormap:
    """Return the colour map of a kind: DeltaNet's has negative weights too."""
    if kind != DELTANET:
        return shades(kind)
    negative = LinearSegmentedColormap.from_list("qwenlab-negative", ["white", *_NEGATIVE])
    steps = np.linspace(0, 1, 129)
    both = [*negative(steps[::-1]), *shades(kind)(steps[1:])]
    return LinearSegmentedColormap.from_list("qwenlab-signed", both, N=257)


@style()
def gate_by_token(maps: Sequence[xr.Dataset], *, tokens: Sequence[str] | None = None, ax: Axes | None = None) -> Figure:
    """Output gates of heads at each token of one text: one row per head; darker is more open.

    maps    of stats.attention_map, recorded by row, of heads of one kind over the same text
    tokens  names of the text's tokens; as many are written as are legible

    Raises BadArgument for heads of several kinds or texts, and without maps.
    """
    checked = [need(one, "attention_map", "mean_gate") for one in maps]
    if not checked or len({(str(one.attrs["kind"]), one.attrs["text"]) for one in checked}) > 1:
        raise BadArgument("gate_by_token draws heads of one kind over one text.\nGive one or several such maps.")
    values = np.stack([one["mean_gate"].values for one in checked])
    heads = len(values)
    shown, ax = panel(ax, 8.0, 1.3 + float(np.clip(0.16 * heads, 0.5, 6)))
    length = 6.6 if shown.new else ax.get_position().width * shown.figure.get_figwidth()
    mesh = ax.pcolormesh(values, cmap=shades(str(checked[0].attrs["kind"])), rasterized=values.size > _MANY)
    ax.invert_yaxis()
    step = max(1, -(-heads // 36))
    names = [f"{one.attrs['layer']}.{one.attrs['head']}" for one in checked]
    ax.set_yticks(np.arange(0, heads, step) + 0.5, names[::step])
    name_tokens(ax.xaxis, checked[0]["query"].values, tokens, length)
    if tokens is None:
        ax.set_xlabel("position (tokens)")
    shown.figure.colorbar(mesh, ax=ax, pad=0.01, aspect=12, label="mean gate value")
    ax.set(title="Openness of the output gate", ylabel="layer.head")
    return shown.figure
