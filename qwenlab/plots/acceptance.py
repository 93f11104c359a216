"""Acceptance of drafts and what it brings, each figure with the rule, the depth and the number it is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from qwenlab.errors import BadArgument
from qwenlab.plots.base.drawing import binary, interval_lines, need, quantity, say
from qwenlab.plots.style import GREY, PALETTE, new_figure, styled

_ONLINE, _FORCED = PALETTE[0], PALETTE[3]
_DASHED = (0, (3, 2))
_MARKS = "osD^vP"
_LETTERS = 15  # of the small print that fit on an inch
_WIDTH = 0.5  # of a place on the axis, that the groups share


@styled
def acceptance(statistics: xr.Dataset) -> Figure:
    """Rates of acceptance by place in the draft, with intervals: unconditional and conditional.

    statistics  of stats.acceptance: as it is; by label, or by depth (stats.by_depth), a colour each; by position in the
                text or by target entropy, the conditional rate of each place in the draft against it. Raises
                BadArgument where groups are more than there are colours.
    """
    data = need(statistics, "acceptance", "draft", "conditional", "conditional_interval")
    for along in ("position", "entropy"):
        if along in data["conditional"].dims:
            return _along(data, along)
    group = next((dim for dim in ("label", "depth") if dim in data["conditional"].dims), None)
    if group is None:
        return _both_rates(data)
    names = data[group].values.tolist()
    if len(names) > len(PALETTE):
        raise BadArgument(
            f"{len(names)} groups along {group}, {len(PALETTE)} colours.\nPick some: .sel({group}={names[:2]})."
        )
    figure = new_figure(7.5, 3.3)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, rate in zip(axes, ("unconditional", "conditional"), strict=True):
        for place, (name, shift) in enumerate(zip(names, _shifts(len(names)), strict=True)):
            text = f"depth {name}" if group == "depth" else str(name)
            _points(ax, data.sel({group: name}), rate, PALETTE[place], _MARKS[place], shift, text)
        _drafts(ax, data)
        ax.set_title(f"{rate.capitalize()} rate")
    axes[0].set_ylabel("share accepted")
    _legend(axes[1])
    return _signed(figure, data.attrs)


def _both_rates(data: xr.Dataset) -> Figure:
    figure = new_figure(6.0, 3.3)
    ax = figure.subplots()
    rates = ("unconditional", "conditional")
    for rate, colour, mark, shift in zip(rates, (_ONLINE, PALETTE[1]), "os", _shifts(2, 0.16), strict=True):
        _points(ax, data, rate, colour, mark, shift, f"{rate} rate")
    _drafts(ax, data)
    ax.set_ylabel("share accepted")
    ax.set_title("Acceptance by place in the draft")
    _legend(ax)
    return _signed(figure, data.attrs)


def _along(data: xr.Dataset, along: str) -> Figure:
    """The conditional rate of each place in the draft against a binned quantity."""
    figure = new_figure(6.0, 3.3)
    ax = figure.subplots()
    drafts = data["draft"].values[: len(PALETTE)]
    for place, (draft, shift) in enumerate(zip(drafts, _shifts(len(drafts)), strict=True)):
        x = np.arange(data.sizes[along]) + shift
        here = data.sel(draft=draft)
        colour = PALETTE[place]
        interval_lines(ax, x, here["conditional_interval"], [colour])
        ax.plot(
            x,
            here["conditional"],
            color=colour,
            marker=_MARKS[place],
            linewidth=0.8,
            label=f"draft {draft}",
            clip_on=False,
        )
    edges = data[along].values
    ax.set_xticks(range(len(edges)), labels=[binary(edge) if along == "position" else f"{edge:g}" for edge in edges])
    _shares(ax)
    ax.set_xlabel(quantity(data[along]))
    ax.set_ylabel("share accepted")
    ax.set_title("Conditional rate")
    _legend(ax)
    return _signed(figure, data.attrs)


@styled
def speedup(statistics: xr.Dataset) -> Figure:
    """Acceptance length and speed-up by depth: predicted, as counted and measured, and where drafting breaks even.

    statistics  of stats.speedup. Lines, with their intervals, are predicted from the deepest ledger; filled marks were
                counted or measured; open ones are what the costs say of those rounds.
    """
    names = ("expected_length", "break_even_length", "acceptance_length", "speedup", "as_run_speedup", "best_speedup")
    data = need(statistics, "speedup", *names, "measured_speedup")
    figure = new_figure(8.4, 3.7)
    left, right = figure.subplots(1, 2)
    depth, best = data["depth"].values, int(data["best_depth"])
    for ax, name in ((left, "expected_length"), (right, "speedup")):
        low, high = (data[f"{name}_interval"].sel(bound=end) for end in ("low", "high"))
        ax.fill_between(depth, low, high, color=_ONLINE, alpha=0.2, linewidth=0)
        ax.plot(depth, data[name], color=_ONLINE, marker="o", markersize=3, label="predicted")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlim(depth[0] - 0.4, depth[-1] + 0.4)
        ax.margins(y=0.1)
        ax.set_xlabel("depth (drafts a round)")
        ax.grid(axis="y")
    for ax, even, text in ((left, data["break_even_length"], "breaks even"), (right, 0 * depth + 1, "plain decoding")):
        ax.plot(depth, even, color=GREY, linestyle=_DASHED)
        ax.annotate(
            text, (depth[-1], even[-1]), (0, 4), textcoords="offset points", ha="right", color="0.35", fontsize=8
        )
    interval_lines(right, depth, data["measured_speedup_interval"], [_FORCED])
    mark: dict[str, Any] = {"edgecolor": _FORCED, "marker": "D", "s": 24, "zorder": 3}
    left.scatter(depth, data["acceptance_length"], color=_FORCED, **mark)
    right.scatter(depth, data["as_run_speedup"], facecolor="white", label="predicted of\nthe rounds run", **mark)
    right.scatter(depth, data["measured_speedup"], color=_FORCED, label="counted,\nmeasured", **mark)
    left.set_ylabel("acceptance length (tokens)")
    left.set_title("Tokens a round")
    right.set_ylabel("speed-up (times)")
    largest = f"{float(data['best_speedup']):.2f} at depth {best}" if best else "none"
    right.set_title(f"Speed-up (best: {largest})")
    _legend(right)
    return _signed(figure, data.attrs, data.attrs | data["acceptance_length"].attrs)


@styled
def teacher_forced(agreement: xr.Dataset, acceptance: xr.Dataset) -> Figure:
    """Agreement along a text beside acceptance online, by place in the draft: what selection does to the first places.

    agreement   of stats.agreement: every emitted token begins a chain of drafts
    acceptance  of stats.acceptance: only those that end a round do, where drafts had just failed or run out
    """
    forced = need(agreement, "agreement", "teacher_forced_unconditional", "teacher_forced_conditional")
    online = need(acceptance, "acceptance", "unconditional", "conditional")
    figure = new_figure(8.4, 3.5)
    axes = figure.subplots(1, 2, sharey=True)
    first, second = _shifts(2, 0.16)
    for ax, rate in zip(axes, ("unconditional", "conditional"), strict=True):
        _points(ax, forced, f"teacher_forced_{rate}", _FORCED, "s", first, "teacher-forced\nagreement")
        _points(ax, online, rate, _ONLINE, "o", second, "acceptance\nonline")
        _drafts(ax, forced if forced.sizes["draft"] > online.sizes["draft"] else online)
        ax.set_title(rate.capitalize())
    axes[0].set_ylabel("share")
    _legend(axes[1])
    return _signed(figure, online.attrs, forced.attrs)


@styled
def calibration(statistics: xr.Dataset) -> Figure:
    """How often drafts are accepted against the probability the head gave them; below, how many there are.

    statistics  of stats.calibration. On the dashed line the probability means what it says.
    """
    data = need(statistics, "calibration", "conditional", "mean_probability", "calibration_error", "tested")
    figure = new_figure(4.2, 4.2)
    above, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    above.plot([0, 1], [0, 1], color=GREY, linestyle=_DASHED, linewidth=0.8)
    interval_lines(above, data["mean_probability"].values, data["conditional_interval"], [_ONLINE])
    above.plot(data["mean_probability"], data["conditional"], color=_ONLINE, marker="o", clip_on=False)
    _shares(above)
    above.set_ylabel("conditional rate")
    above.set_title(f"Calibration of the head (error {float(data['calibration_error']):.3f})")
    bins = int(data.attrs["bins"])
    below.bar(
        data["probability"], data["tested"], width=0.96 / bins, align="edge", color=_ONLINE, alpha=0.5, linewidth=0
    )
    below.set_xlim(0, 1)
    below.xaxis.set_major_formatter(PercentFormatter(1))
    say(below.yaxis, lambda value: f"{value:,.0f}")
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    below.set_ylabel("tested")
    below.set_xlabel("probability of the draft by the head")
    return _signed(figure, data.attrs)


def _shifts(many: int, step: float | None = None) -> np.ndarray:
    """Where groups stand around their place, so that their intervals do not cover one another."""
    step = _WIDTH / max(1, many) if step is None else step
    return (np.arange(many) - (many - 1) / 2) * min(step, 0.16)


def _points(ax: Axes, data: xr.Dataset, rate: str, colour: str, mark: str, shift: float, label: str) -> None:
    """A rate by place in the draft with its interval."""
    x = data["draft"].values + shift
    interval_lines(ax, x, data[f"{rate}_interval"], [colour])
    ax.plot(x, data[rate], color=colour, marker=mark, linewidth=0.8, label=label, clip_on=False)


def _drafts(ax: Axes, data: xr.Dataset) -> None:
    """The axes of a rate by place in the draft."""
    drafts = data["draft"].values
    ax.set_xticks(drafts)
    ax.set_xlim(drafts[0] - 0.5, drafts[-1] + 0.5)
    ax.set_xlabel("place in the draft")
    _shares(ax)


def _shares(ax: Axes) -> None:
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.grid(axis="y")


def _legend(ax: Axes) -> None:
    """A legend right of the axes, where it covers nothing."""
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _signed(figure: Figure, *facts: Mapping[Any, Any]) -> Figure:
    """Write below what the rates depend on, in lines that fit; each that says something else begins its own."""
    fits = int(figure.get_figwidth() * _LETTERS)
    lines: list[str] = []
    for each in dict.fromkeys(tuple(_facts(attrs)) for attrs in facts):
        lines.append("")
        for fact in each:
            longer = f"{lines[-1]} · {fact}" if lines[-1] else fact
            lines[-1:] = [longer] if len(longer) <= fits else [lines[-1], fact]
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7.5, color="0.35")
    return figure


def _facts(attrs: Mapping[Any, Any]) -> Iterator[str]:
    """The rule, depth, policy, text and number of a rate, and how sure it is."""
    yield f"rule {attrs['rule']}"
    yield f"depth {attrs['depth']}"
    if "policy" in attrs:
        yield f"policy {attrs['policy']}"
    yield f"{str(attrs['text']).replace('_', '-')} text"
    yield str(attrs["origin"])
    if "rounds" in attrs:
        yield f"n = {_counted(attrs['rounds'])} rounds of {_counted(attrs['prompts'])} prompts"
    else:
        yield f"n = {_counted(attrs['chains'])} chains of {_counted(attrs['texts'])} texts"
    yield f"bars: {float(attrs['level']):.0%} intervals"


def _counted(number: Any) -> str:
    """A count with its thousands apart; or several, as they are."""
    return str(number) if isinstance(number, str) else f"{int(number):,}"
