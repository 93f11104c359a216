"""Figures of states and of stored pairs: what is drawn is what the statistic says."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from numpy.testing import assert_allclose

from qwenlab import plots, stats
from qwenlab.errors import BadArgument, MissingVariable
from qwenlab.testing.states import made_states

DRAWS = {
    "state_growth": "state_growth",
    "state_rank": "state_rank",
    "retention": "retention",
    "state_precision": "state_precision",
}
BLUE = "#0072b2"


@pytest.fixture(scope="module")
def recording():
    return made_states().recording


@pytest.fixture(scope="module")
def told(recording):
    return {name: getattr(stats, name)(recording) for name in DRAWS}


def curves(ax, points):
    """What is drawn through so many points."""
    return [line.get_ydata() for line in ax.get_lines() if len(line.get_xdata()) == points]


def test_growth_draws_the_median_head_of_every_layer(told):
    data = told["state_growth"].dropna("position_bin", how="all", subset=["norm"])
    left, right = plots.state_growth(told["state_growth"]).axes[:2]
    assert_allclose(curves(left, data.sizes["position_bin"]), data["norm"].median("head"))
    rewrite = told["state_growth"]["rewrite"].dropna("position_bin", how="all")
    assert_allclose(curves(right, rewrite.sizes["position_bin"]), rewrite.median("head"))
    colours = [to_hex(line.get_color()) for line in left.get_lines()]
    assert len(set(colours)) == data.sizes["layer"]
    assert (left.get_xlabel(), left.get_xscale(), left.get_yscale()) == (
        "position in the text (tokens)",
        "symlog",
        "log",
    )


def test_rank_draws_both_ranks_and_the_full_one(told):
    data = told["state_rank"].dropna("position_bin", how="all", subset=["stable_rank"])
    axes = plots.state_rank(told["state_rank"]).axes[:2]
    for ax, name in zip(axes, ("effective_rank", "stable_rank"), strict=True):
        assert_allclose(curves(ax, data.sizes["position_bin"]), data[name].median("head"))
        assert [8, 8] in [list(line.get_ydata()) for line in ax.get_lines()]


@pytest.mark.parametrize("by", ["distance", "writes"])
def test_retention_draws_every_head_their_mean_and_decay(recording, by):
    data = stats.retention(recording, by=by)
    figure = plots.retention(data, layers=[0, 5])
    data = data.dropna(f"{by}_bin", how="all", subset=["survival"])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["layer 0", "layer 5"]
    for ax, layer in zip(figure.axes, (0, 5), strict=True):
        here = data.sel(layer=layer)
        drawn = curves(ax, data.sizes[f"{by}_bin"])
        assert_allclose(drawn[:4], here["survival"])
        assert_allclose(drawn[4:], [here["survival"].mean("head"), here["decay_alone"].mean("head")])
        assert to_hex(ax.get_lines()[0].get_color()) == BLUE


def test_precision_draws_median_and_worst_head_of_each_format(told):
    data = told["state_precision"]["error"].dropna("position_bin", how="all")
    ax = plots.state_precision(told["state_precision"]).axes[0]
    drawn = curves(ax, data.sizes["position_bin"])
    for index, format in enumerate(["bfloat16", "int8"]):
        here = data.sel(format=format)
        assert_allclose(drawn[2 * index], here.median(["layer", "head"]))
        assert_allclose(drawn[2 * index + 1], here.max(["layer", "head"]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["bfloat16", "int8"]


def test_layers_that_are_not_there(told):
    with pytest.raises(BadArgument, match=r"^layers=\[3\]: these statistics have layers \[0, 1, 2, 4, 5, 6\]\.$"):
        plots.retention(told["retention"], layers=[0, 3])


@pytest.mark.parametrize("name", DRAWS)
def test_what_is_no_such_statistic(name, told, recording):
    wrong = told["retention" if name != "retention" else "state_rank"]
    with pytest.raises(MissingVariable, match=rf"Draw what qwenlab\.stats\.{name}\(recording\) returns"):
        getattr(plots, name)(wrong)


def test_rank_without_positions_is_refused(recording):
    with pytest.raises(MissingVariable, match="No position_bin"):
        plots.state_rank(stats.state_rank(recording, by_position=False))


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
