"""Figures of states: what is drawn is what the statistic says."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from numpy.testing import assert_allclose

from qwenlab import plots, stats
from qwenlab.errors import BadArgument, MissingVariable
from tests.planted.states import made_states

DRAWS = {
    "state_growth": "state_growth",
    "state_rank": "state_rank",
}
BLUE = "#0072b2"


@pytest.fixture(scope="module")
def recording():
    return made_states().recording


@pytest.fixture(scope="module")
def statistics(recording):
    return {name: getattr(stats, name)(recording) for name in DRAWS}


def curves(ax, points):
    """Return the lines with this number of points."""
    return [line.get_ydata() for line in ax.get_lines() if len(line.get_xdata()) == points]


def test_growth_draws_the_median_head_of_every_layer(statistics):
    data = statistics["state_growth"].dropna("position_bin", how="all", subset=["norm"])
    left, right = plots.state_growth(statistics["state_growth"]).axes[:2]
    assert_allclose(curves(left, data.sizes["position_bin"]), data["norm"].median("head"))
    rewrite = statistics["state_growth"]["rewrite"].dropna("position_bin", how="all")
    assert_allclose(curves(right, rewrite.sizes["position_bin"]), rewrite.median("head"))
    colours = [to_hex(line.get_color()) for line in left.get_lines()]
    assert len(set(colours)) == data.sizes["layer"]
    assert (left.get_xlabel(), left.get_xscale(), left.get_yscale()) == (
        "position in the text (tokens)",
        "symlog",
        "log",
    )


def test_rank_draws_both_ranks_and_the_full_one(statistics):
    data = statistics["state_rank"].dropna("position_bin", how="all", subset=["stable_rank"])
    axes = plots.state_rank(statistics["state_rank"]).axes[:2]
    for ax, name in zip(axes, ("effective_rank", "stable_rank"), strict=True):
        assert_allclose(curves(ax, data.sizes["position_bin"]), data[name].median("head"))
        assert [8, 8] in [list(line.get_ydata()) for line in ax.get_lines()]


def test_a_head_has_one_mark_in_each_panel(recording):
    """In the order of the effective rank within each layer, in all panels; with their intervals."""
    data = stats.state_rank(recording).assign(stats.state_growth(recording).data_vars).sel(position_bin=64)
    axes = plots.state_by_head(data).axes
    order = np.argsort(data["effective_rank"].values, axis=1)
    for ax, name in zip(axes, ("effective_rank", "stable_rank", "norm", "rewrite"), strict=True):
        marks = [np.array(each.get_offsets()) for each in ax.collections if isinstance(each, PathCollection)]
        assert_allclose([each[:, 1] for each in marks], np.take_along_axis(data[name].values, order, axis=1))
        assert all(
            to_hex(each.get_facecolor()[0]) == BLUE for each in ax.collections if isinstance(each, PathCollection)
        )
        ends = [
            segment[:, 1]
            for each in ax.collections
            if isinstance(each, LineCollection)
            for segment in each.get_segments()
        ]
        interval = np.take_along_axis(data[f"{name}_interval"].values, order[..., None], axis=1)
        assert_allclose(ends, interval.reshape(-1, 2))
    with pytest.raises(
        BadArgument, match=r"^The statistics are of 10 octaves\.\nSelect one: \.sel\(position_bin=256\)"
    ):
        plots.state_by_head(stats.state_rank(recording).assign(stats.state_growth(recording).data_vars))


@pytest.mark.parametrize("name", DRAWS)
def test_other_statistics_are_refused(name, statistics, recording):
    wrong = stats.retention(recording)
    with pytest.raises(MissingVariable, match=rf"Draw what qwenlab\.stats\.{name}\(recording\) returns"):
        getattr(plots, name)(wrong)


def test_rank_without_positions_is_refused(recording):
    with pytest.raises(MissingVariable, match="No position_bin"):
        plots.state_rank(stats.state_rank(recording, by_position=False))


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("layers", [2, 8, 48])
def test_no_text_is_cut_off_and_settings_stay(name, layers):
    data = getattr(stats, name)(made_states(layers=layers, sequences=8, length=40).recording)
    before = dict(mpl.rcParams)
    figure = getattr(plots, name)(data)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3]
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (edge == 255).all()  # what is cut off touches the edge
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []
