"""Maps of heads: which earlier tokens' values the output at each token is made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.colors import Colormap, FuncNorm, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qwenlab.checkpoint.families import DELTANET
from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import need
from qwenlab.plots.style import LABELS, PALE, figure_of, new_figure, shades, styled

_NEGATIVE = ("#B2182B", "#67001F")
"""Less and less: a red that no eye takes for either kind's colour."""

_MANY = 2**14  # cells that a vector format holds one by one
_SIDE = (3.2, 5.6)  # inches of a map's side, at least and at most
_LETTER, _LINE = 6.0, 6.6  # points of a token's label, and from one to the next


@styled
def attention_map(
    maps: xr.Dataset | Sequence[xr.Dataset],
    *,
    tokens: Sequence[str] | None = None,
    begin: int = 0,
    end: int | None = None,
    marks: Sequence[tuple[int, int]] = (),
) -> Figure:
    """Maps of one text side by side, each in the shades of its kind; negative weights of DeltaNet in red.

    maps        of stats.attention_map, one or several
    tokens      what the text's tokens are called; as many names are written as can be read
    begin, end  only these positions
    marks       positions (query, key) of weights to draw a frame around, such as those from questions to their answers

    Shades follow the square root of |weight|, so that small ones can be seen, and end at the largest of the later half
    of the rows: the first rows have few weights, and those of softmax add up to 1. Larger ones look like that one.
    """
    shown = [maps] if isinstance(maps, xr.Dataset) else list(maps)
    if not shown:
        raise BadArgument("attention_map draws one map or several, and was given none.")
    checked = [need(each, "attention_map", "weight") for each in shown]
    cut = [each.where(_inside(each, begin, end), drop=True) for each in checked]
    side = _SIDE[0] if tokens is None else float(np.clip(max(c.sizes["key"] for c in cut) * _LINE / 72, *_SIDE))
    figure = new_figure((side + 1.35) * len(cut), side + (0.75 if tokens is None else 0.95))
    for number, (ax, each) in enumerate(zip(np.atleast_1d(figure.subplots(1, len(cut))), cut, strict=True)):
        _one(ax, each)
        _mark(ax, each, marks)
        _name(ax, each, tokens, side, first=number == 0)
    return figure


def _inside(data: xr.Dataset, begin: int, end: int | None) -> xr.DataArray:
    """Which queries and keys are between these positions. Raises BadArgument where none is."""
    last = np.inf if end is None else end
    query, key = ((data[dim] >= begin) & (data[dim] < last) for dim in ("query", "key"))
    if not query.any() or not key.any():
        raise BadArgument(
            f"begin={begin}, end={end}: the map's queries are at positions {int(data['query'].min())} to "
            f"{int(data['query'].max())}."
        )
    return query & key


def _one(ax: Axes, data: xr.Dataset) -> None:
    """One map and its colour bar."""
    weight, kind = data["weight"].transpose("query", "key"), str(data.attrs["kind"])
    size, signed = abs(weight), kind == DELTANET
    most = float(size[size.sizes["query"] // 2 :].max()) or 1.0
    beyond = float(size.max()) > most
    norm = FuncNorm((_root, _square), vmin=-most if signed else 0.0, vmax=most)
    seen = np.ma.masked_invalid(weight.values)
    mesh = ax.pcolormesh(seen, cmap=_colours(kind), norm=norm, rasterized=seen.size > _MANY)
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


def _mark(ax: Axes, data: xr.Dataset, marks: Sequence[tuple[int, int]]) -> None:
    """A frame around each of these weights that is shown."""
    places = [{int(at): number for number, at in enumerate(data[dim].values)} for dim in ("query", "key")]
    for query, key in marks:
        if query in places[0] and key in places[1]:
            corner = places[1][key], places[0][query]
            ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=0.9, clip_on=False))


def _name(ax: Axes, data: xr.Dataset, tokens: Sequence[str] | None, side: float, *, first: bool) -> None:
    """Name queries and keys, by their tokens or by their positions."""
    block = int(data.attrs.get("block", 1))
    for dim, axis in (("key", ax.xaxis), ("query", ax.yaxis)):
        length = side if dim == "key" else side * min(1.0, data.sizes["query"] / data.sizes["key"])
        name_tokens(axis, data[dim].values, tokens, length)
        if tokens is None and (dim == "key" or first):
            axis.set_label_text(f"{dim} (token)" if block == 1 else f"{dim} (token, in blocks of {block})")


def name_tokens(axis: Axis, positions: np.ndarray, tokens: Sequence[str] | None, length: float) -> None:
    """Name as many of the tokens at these positions as can be read along an axis of so many inches, each a unit wide.

    By their names, or by their positions where there are none.
    """
    count = len(positions)
    step = max(1, int(np.ceil(count * (_LINE if tokens else 28.0) / (72 * length) - 0.05)))
    named = [_word(tokens, int(each)) for each in positions[::step]]
    axis.set_ticks(np.arange(0, count, step) + 0.5, labels=named)
    if tokens is not None:
        axis.set_tick_params(labelsize=_LETTER, length=1.5, pad=1.5)
        if isinstance(axis, XAxis):
            axis.set_tick_params(labelrotation=90)


def _word(tokens: Sequence[str] | None, position: int) -> str:
    """A token as it can be seen: spaces and ends of lines as marks, long ones cut."""
    if tokens is None:
        return str(position)
    if position >= len(tokens):
        raise BadArgument(f"tokens: {len(tokens)} names for a text of at least {position + 1} tokens.")
    seen = str(tokens[position]).replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·")
    return seen if len(seen) <= 10 else f"{seen[:9]}…"


def _colours(kind: str) -> Colormap:
    if kind != DELTANET:
        return shades(kind)
    more = shades(kind)
    less = LinearSegmentedColormap.from_list("qwenlab-negative", ["white", *_NEGATIVE])
    steps = np.linspace(0, 1, 129)
    return LinearSegmentedColormap.from_list("qwenlab-signed", [*less(steps[::-1]), *more(steps[1:])], N=257)


def _root(weight: np.ndarray) -> np.ndarray:
    return np.sign(weight) * np.sqrt(np.abs(weight))


def _square(root: np.ndarray) -> np.ndarray:
    return np.sign(root) * np.square(root)
