"""Figures of acceptance: what is drawn is what the statistic says, and below each is a note."""

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

from qwenlab import plots, stats
from qwenlab.errors import BadArgument, MissingVariable
from qwenlab.plots.style import PALETTE
from qwenlab.testing.ledgers import made_ledger, replayed
from qwenlab.testing.traces import made_trace

WIDTHS = np.arange(1, 10)
COSTS = xr.Dataset(
    {"plain_step": 1.0, "verify_step": ("width", 1 + WIDTHS / 12), "draft_step": 0.1, "rollback": 0.02},
    {"width": WIDTHS},
)


def timed(depth):
    data = made_ledger(depth=depth, texts=20)
    data["seconds"] = ("round", 1.3 + 0.2 * data["drafted"].values)
    return data


@pytest.fixture(scope="module")
def statistics():
    trace = made_trace(texts=20)
    data = replayed(trace, origin="online")
    four = made_ledger(texts=20, labels=["code", "prose", "arithmetic", "recall"])
    return {
        "plain": stats.acceptance(data),
        "label": stats.acceptance(four, by="label"),
        "position": stats.acceptance(data, by="position"),
        "entropy": stats.acceptance(data, by="entropy"),
        "depth": stats.by_depth([timed(depth) for depth in (1, 2, 4, 8)]),
        "speedup": stats.speedup([timed(depth) for depth in (1, 4, 8)], COSTS),
        "one depth": stats.speedup(made_ledger(depth=1), COSTS),
        "slow": stats.speedup(made_ledger(), COSTS.assign(draft_step=9.0)),
        "calibration": stats.calibration(data),
        "agreement": stats.agreement(trace),
    }


DRAWS = {
    **dict.fromkeys(("plain", "label", "position", "entropy", "depth"), plots.acceptance),
    **dict.fromkeys(("speedup", "one depth", "slow"), plots.speedup),
    "calibration": plots.calibration,
}


def draw(name, statistics):
    if name == "agreement":
        return plots.agreement(statistics["agreement"], statistics["plain"])
    return DRAWS[name](statistics[name])


EVERY = [*DRAWS, "agreement"]


def segments(ax):
    """Low and high of every interval that is drawn."""
    drawn = [s for one in ax.collections if isinstance(one, LineCollection) for s in one.get_segments()]
    return [segment[:, 1] for segment in drawn if len(segment)]


def known(interval):
    """Low and high of every interval that there is."""
    ends = interval.values.reshape(-1, 2)
    return ends[~np.isnan(ends[:, 0])]


def points(ax):
    return [one.get_offsets()[:, 1] for one in ax.collections if isinstance(one, PathCollection)]


def heights(ax):
    return {line.get_label(): np.asarray(line.get_ydata()) for line in ax.get_lines()}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_no_text_is_cut_off_and_settings_stay(name, statistics):
    with mpl.rc_context({"font.size": 17.0, "text.parse_math": True}):
        before = dict(mpl.rcParams)
        figure = draw(name, statistics)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        assert dict(mpl.rcParams) == before
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == []
    picture = np.asarray(canvas.buffer_rgba())[..., :3]
    assert (np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]]) == 255).all()
    assert any(ax.get_xlabel() for ax in figure.axes)
    assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", EVERY)
def test_the_note_has_rule_depth_and_counts(name, statistics):
    facts = draw(name, statistics).get_supxlabel().replace("\n", " · ")
    data = statistics["plain"] if name == "agreement" else statistics[name]
    assert "rule greedy · depth " in facts
    assert f"depth {data.attrs['depth']} · policy fixed · own text · online" in facts
    rounds = data.attrs["rounds"]
    assert (
        f"n = {rounds if isinstance(rounds, str) else f'{rounds:,}'} rounds of {data.attrs['prompts']} prompts" in facts
    )
    assert facts.endswith("bars: 95% intervals")


def test_both_rates_with_their_intervals(statistics):
    data = statistics["plain"]
    (ax,) = draw("plain", statistics).axes
    drawn = heights(ax)
    for rate in ("unconditional", "conditional"):
        assert_allclose(drawn[f"{rate} rate"], data[rate])
    expected = np.concatenate([data[f"{rate}_interval"] for rate in ("unconditional", "conditional")])
    assert_allclose(segments(ax), expected)
    assert ax.get_xlabel() == "draft position"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("group", ["label", "depth"])
def test_groups_have_a_colour_and_a_mark_each(group, statistics):
    data = statistics[group]
    axes = draw(group, statistics).axes
    for ax, rate in zip(axes, ("unconditional", "conditional"), strict=True):
        lines = ax.get_lines()
        for place, name in enumerate(data[group].values):
            here = data[rate].sel({group: name})
            assert_allclose(lines[place].get_ydata(), here)
            assert lines[place].get_color() == PALETTE[place]
            assert lines[place].get_label() == (f"depth {name}" if group == "depth" else name)
        assert len({line.get_marker() for line in lines}) == len(lines)
        assert_allclose(segments(ax), known(data[f"{rate}_interval"].transpose(group, "draft", "bound")))


@pytest.mark.parametrize("along", ["position", "entropy"])
def test_along_the_text_or_the_entropy_a_line_a_place(along, statistics):
    data = statistics[along]
    (ax,) = draw(along, statistics).axes
    for draft, line in zip(data["draft"].values, ax.get_lines(), strict=True):
        assert_allclose(line.get_ydata(), data["conditional"].sel(draft=draft))
        assert line.get_label() == f"draft {draft}"
    ticks = [tick.get_text() for tick in ax.get_xticklabels()]
    assert ticks == [f"{edge:g}" for edge in data[along].values]


def test_speed_up_draws_predicted_run_and_measured(statistics):
    data = statistics["speedup"]
    left, right = draw("speedup", statistics).axes
    assert_allclose(heights(left)["predicted"], data["expected_length"])
    assert_allclose(heights(right)["predicted"], data["speedup"])
    even = [line for line in left.get_lines() if line.get_label() != "predicted"]
    assert_allclose(even[0].get_ydata(), data["break_even_length"])
    assert_allclose(points(left)[0], data["acceptance_length"])
    run, measured = points(right)
    assert_allclose(run, data["as_run_speedup"])
    assert_allclose(measured, data["measured_speedup"])
    assert_allclose(segments(right), known(data["measured_speedup_interval"]))
    assert len(segments(right)) == 3
    best = int(data["best_depth"])
    assert right.get_title(loc="left") == f"Speed-up (best: {float(data['speedup'].max()):.2f} at depth {best})"
    assert {text.get_text() for ax in (left, right) for text in ax.texts} == {"break-even", "plain decoding"}


def test_without_a_speed_up_the_title_says_none(statistics):
    assert draw("slow", statistics).axes[1].get_title(loc="left") == "Speed-up (best: none)"


def test_teacher_forced_next_to_online(statistics):
    for ax, rate in zip(draw("agreement", statistics).axes, ("unconditional", "conditional"), strict=True):
        drawn = heights(ax)
        assert_allclose(drawn["teacher-forced\nagreement"], statistics["agreement"][f"teacher_forced_{rate}"])
        assert_allclose(drawn["acceptance\nonline"], statistics["plain"][rate])
    facts = draw("agreement", statistics).get_supxlabel()
    chains = statistics["agreement"].attrs["chains"]
    assert f"own text · trace · n = {chains:,} chains of 20 texts" in facts.replace("\n", " · ")


def test_calibration_draws_the_rate_over_the_probability(statistics):
    data = statistics["calibration"]
    above, below = draw("calibration", statistics).axes
    diagonal, line = above.get_lines()
    assert_allclose(diagonal.get_xdata(), diagonal.get_ydata())
    assert_allclose(line.get_xdata(), data["mean_probability"])
    assert_allclose(line.get_ydata(), data["conditional"])
    assert_allclose([patch.get_height() for patch in below.patches], data["tested"])
    assert f"{float(data['calibration_error']):.3f}" in above.get_title(loc="left")


def test_more_groups_than_colours_are_refused():
    labels = list("abcdefg")
    data = stats.acceptance(made_ledger(labels=labels, texts=14), by="label")
    with pytest.raises(BadArgument, match=r"7 labels, but only 6 colours\.\nSelect some: \.sel\(label=\['a', 'b'\]\)"):
        plots.acceptance(data)
    assert plots.acceptance(data.sel(label=["a", "b"])).axes


@pytest.mark.parametrize(
    ("plot", "statistic"), [("acceptance", "acceptance"), ("speedup", "speedup"), ("calibration", "calibration")]
)
def test_another_dataset_is_refused_by_what_it_lacks(plot, statistic, statistics):
    with pytest.raises(MissingVariable, match=rf"Draw what qwenlab\.stats\.{statistic}\(recording\) returns"):
        getattr(plots, plot)(statistics["agreement"])
    with pytest.raises(MissingVariable, match=r"Draw what qwenlab\.stats\.agreement"):
        plots.agreement(statistics["plain"], statistics["plain"])
    with pytest.raises(MissingVariable, match=r"Draw what qwenlab\.stats\.acceptance"):
        plots.agreement(statistics["agreement"], statistics["calibration"])


def test_by_label_must_be_narrowed_to_one(statistics):
    with pytest.raises(BadArgument, match=r"by label: code, prose, .*\nSelect one: \.sel\(label='code'\)"):
        plots.agreement(statistics["agreement"], statistics["label"])
