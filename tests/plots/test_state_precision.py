"""Figures of states in low precision: what is drawn is what the statistic says."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from numpy.testing import assert_allclose

from qwenlab import plots, stats
from qwenlab.errors import BadArgument, MissingVariable
from tests.planted.states import made_states
from tests.plots.drawn import checked


@pytest.fixture(scope="module")
def statistics():
    return stats.state_precision(made_states().recording)


def test_median_and_worst_head_of_each_format(statistics):
    data = statistics["error"].dropna("position_bin", how="all")
    ax = plots.state_precision(statistics).axes[0]
    drawn = [line.get_ydata() for line in ax.get_lines()]
    for index, format in enumerate(["bfloat16", "int8"]):
        here = data.sel(format=format)
        assert_allclose(drawn[2 * index], here.median(["layer", "head"]))
        assert_allclose(drawn[2 * index + 1], here.max(["layer", "head"]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["bfloat16", "int8"]


def test_every_head_in_a_panel_a_format(statistics):
    data = statistics.sel(position_bin=64)
    axes = plots.state_precision_by_head(data).axes
    order = np.argsort(data["error"].sel(format="bfloat16").values, axis=1)  # in both panels
    for ax, format in zip(axes, ["bfloat16", "int8"], strict=True):
        here = data.sel(format=format)
        marks = [np.array(each.get_offsets())[:, 1] for each in ax.collections if isinstance(each, PathCollection)]
        assert_allclose(marks, np.take_along_axis(here["error"].values, order, axis=1))
        lines = [each.get_segments() for each in ax.collections if isinstance(each, LineCollection)]
        ends = np.take_along_axis(here["error_interval"].values, order[..., None], axis=1)
        assert_allclose([[segment[:, 1] for segment in layer] for layer in lines], ends)
        assert ax.get_title(loc="left") == format


def test_what_cannot_be_drawn(statistics):
    with pytest.raises(BadArgument, match=r"octaves\.\nSelect one: \.sel\(position_bin=256\)\.$"):
        plots.state_precision_by_head(statistics)
    for draw in (plots.state_precision, plots.state_precision_by_head):
        with pytest.raises(MissingVariable, match=r"Draw what qwenlab\.stats\.state_precision\(recording\) returns"):
            draw(statistics.drop_vars("error"))


def test_an_interval_that_ends_at_0_does_not_stretch_the_axis(statistics):
    """Where texts differ much, the lower end of something positive is cut to 0, which a log axis does not have."""
    data = statistics.sel(position_bin=64).copy(deep=True)
    data["error_interval"].loc[{"bound": "low"}] = 0
    low, high = plots.state_precision_by_head(data).axes[0].get_ylim()
    assert float(data["error"].min()) / 2 < low < float(data["error"].min())
    assert float(data["error_interval"].max()) < high


@pytest.mark.parametrize("layers", [2, 20])
def test_no_text_is_cut_off_and_settings_stay(layers):
    data = stats.state_precision(made_states(layers=layers, sequences=8, length=40).recording)
    checked(lambda: plots.state_precision(data))
    checked(lambda: plots.state_precision_by_head(data.sel(position_bin=16)))
