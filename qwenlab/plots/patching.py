"""Where a patched value brings back the source's answer: layers by positions."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from qwenlab.errors import NothingMeasured
from qwenlab.plots.base.cells import cells, verdicts
from qwenlab.plots.base.drawing import layer_ticks, need, quantity
from qwenlab.plots.style import COLOURS, DIVERGING, kind_marks, legend_over, new_figure, styled

_NAMED = 48  # positions: their tokens are written
_MANY = 40  # ticks


@styled
def patching(statistics: xr.Dataset) -> Figure:
    """How much of the source's answer each patched value brings back, a row a layer and a column a position.

    statistics  of stats.patching; a panel for each part that was patched. Green: the answer comes back, purple: it goes
                further away; filled cells are significant, underlined cells do not differ significantly from the
                target. Under each position stands the token that all pairs have there, or "…"; bold are the positions
                in which source and target differ. Raises NothingMeasured where there was nothing to restore.
    """
    data = need(statistics, "patching", "restored", "significant", "total", "total_interval")
    if bool(data["restored"].isnull().all()):
        low, high = data["total_interval"].values
        raise NothingMeasured(
            f"There is nothing to restore: after the source, its answer is {float(data['total']):+.3g} nat likelier "
            f"than after the target, [{low:+.3g}, {high:+.3g}].\nPatch texts whose answers the model tells apart."
        )
    parts = list(dict.fromkeys(data["part"].values.tolist()))
    panels = [data.isel(site=np.flatnonzero(data["part"].values == part)) for part in parts]
    rows, columns = [panel.sizes["site"] for panel in panels], data.sizes["position"]
    row = float(np.clip(5 / max(rows), 0.09, 0.24))
    width = float(np.clip(2.6 + 0.24 * columns, 5.6, 12))
    figure = new_figure(width, 1.5 + sum(rows) * row + 0.35 * len(rows))
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=rows)[:, 0]
    limit = max(1.0, float(np.abs(data["restored"]).max()))
    for ax, panel in zip(axes, panels, strict=True):
        _of_part(ax, panel, limit)
    _positions(axes[-1], data)
    kinds = [str(kind) for kind in data["kind"].values]
    legend_over(figure, [*kind_marks(kinds), *verdicts()])
    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), DIVERGING), ax=list(axes), aspect=20, pad=0.02)
    bar.set_label(quantity(data["restored"]))
    bar.outline.set_linewidth(0)
    figure.supxlabel(_words(data), x=0.01, ha="left", fontsize=7.5, color="0.35")
    return figure


def _words(data: xr.Dataset) -> str:
    """What the figure is of."""
    low, high = data["total_interval"].values
    ends = "" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    heads = f" · heads {data.attrs['heads']}" if data.attrs.get("heads") else ""
    return f"n = {data.attrs['pairs']} pairs · 1 is the whole source: {float(data['total']):+.2f}{ends} nat{heads}"


def _of_part(ax: Axes, panel: xr.Dataset, limit: float) -> None:
    """The cells of one part: filled where significant, underlined where not; the strip of kinds at the left."""
    values, significant = panel["restored"].values, panel["significant"].values
    y, x = (each.ravel() for each in np.indices(values.shape))
    cells(ax, x, y, mpl.colormaps[DIVERGING](0.5 + values.ravel() / (2 * limit)), significant.ravel())
    strip = 0.012 * values.shape[1] + 0.25
    for row, kind in enumerate(panel["kind"].values):
        ax.add_patch(Rectangle((-0.65 - strip, row - 0.44), strip, 0.88, color=COLOURS[str(kind)], linewidth=0))
    ax.set_xlim(-0.75 - strip, values.shape[1] - 0.5)
    ax.set_ylim(len(values) - 0.5, -0.5)
    layer_ticks(ax.yaxis, panel)
    ax.tick_params(left=False)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_title(str(panel["part"].values[0]))


def _positions(ax: Axes, data: xr.Dataset) -> None:
    """Positions with their tokens, where those are few."""
    positions, count = data["position"].values, data.sizes["position"]
    if count > _NAMED:
        step = -(-count // _MANY)
        ax.set_xticks(range(0, count, step), labels=[str(each) for each in positions[::step]], rotation=90)
        ax.set_xlabel("position (tokens)")
        return
    tokens = [
        f"{_shown(str(one))}→{_shown(str(two))}" if one and two and one != two else _shown(str(one))
        for one, two in zip(data["source_token"].values, data["target_token"].values, strict=True)
    ]
    upright = max(map(len, tokens)) <= 3
    between, turn = ("\n", 0) if upright else ("  ", 90)
    pairs = zip(tokens, positions, strict=True)
    labels = [f"{token}{between}{at}" for token, at in pairs]
    ax.set_xticks(range(count), labels=labels, rotation=turn, fontsize=7)
    for label, differs in zip(ax.get_xticklabels(), data["differs"].values, strict=True):
        label.set_fontweight("bold" if differs else "normal")
    ax.set_xlabel("token and position (tokens)")


def _shown(token: str) -> str:
    """A token on one line, its white space seen; … for none."""
    seen = token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") or "…"
    return "".join(letter if letter.isprintable() else "�" for letter in seen)
