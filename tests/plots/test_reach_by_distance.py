"""Mass by distance, and heads on texts of one label against another: what is drawn is what the statistic says."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from numpy.testing import assert_allclose

from qwenlab import plots, stats
from qwenlab.errors import BadArgument, MissingVariable
from tests.planted.maps import made_maps

BLUE, ORANGE = "#0072b2", "#e69f00"
TITLES = {
    "horizon": "90% horizon (tokens)",
    "entropy": "entropy (nat)",
    "first_mass": "first token (share)",
    "previous_mass": "previous token (share)",
    "induction_lift": "induction / uniform",
    "negative": "negative (share)",
}


@pytest.fixture(scope="module")
def recording():
    return made_maps(labels=["code", "prose", "recall"]).recording


@pytest.fixture(scope="module")
def statistics(recording):
    return stats.reach(recording)


@pytest.fixture(scope="module")
def by_label(recording):
    return stats.reach(recording, by_label=True)


def test_a_line_a_head_and_the_median_of_each_kind(statistics):
    figure = plots.mass_by_distance(statistics)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["DeltaNet", "attention"]
    for ax, colour, kind, count in zip(
        figure.axes, (BLUE, ORANGE), ("linear_attention", "full_attention"), (24, 6), strict=True
    ):
        heads = [line for line in ax.lines if to_hex(line.get_color()) == colour]
        share = (
            statistics["mass_share"]
            .sel(layer=statistics["kind"].values == kind)
            .stack(one=("layer", "head"))
            .dropna("one")
        )
        within = share.transpose("one", "distance_bin").values.cumsum(axis=1)
        drawn = np.array([line.get_ydata() for line in heads])
        assert len(heads) == count
        assert_allclose(np.sort(drawn, axis=0), np.sort(within[:, : drawn.shape[1]], axis=0))
        assert_allclose(drawn[:, -1], 1)
        at = heads[0].get_xdata()
        assert at[:6].tolist() == [0, 1, 2, 3, 5, 7]  # the last distance of each bin
        assert any(np.allclose(line.get_ydata(), np.median(drawn, axis=0)) for line in ax.lines)
        assert ax.get_legend().get_texts()[0].get_text() == f"median of {count} heads"


def test_one_kind_has_one_panel():
    statistics = stats.reach(made_maps(kinds=["full_attention"]).recording)
    assert [ax.get_title(loc="left") for ax in plots.mass_by_distance(statistics).axes] == ["attention"]


def test_a_mark_a_head_for_every_other_label(by_label):
    figure = plots.reach_by_label(by_label, against="prose")
    axes = np.array(figure.axes).reshape(2, 6)
    assert [ax.get_title(loc="left") for ax in axes[0]] == list(TITLES.values())
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["on code", "on recall"]
    assert {ax.get_xlabel() for ax in axes[1]} == {"on prose"}
    for row, other in zip(axes, ("code", "recall"), strict=True):
        for ax, name in zip(row, TITLES, strict=True):
            values = by_label[name].sel(share=0.9) if name == "horizon" else by_label[name]
            x, y = (values.sel(label=label).values.ravel() for label in ("prose", other))
            marks = [each for each in ax.collections if isinstance(each, PathCollection)]
            drawn = np.ma.concatenate([each.get_offsets() for each in marks])
            drawn = np.array(drawn[~np.ma.getmaskarray(drawn).any(axis=1)])
            wanted = np.stack([x, y], axis=1)[~np.isnan(x)]
            assert_allclose(drawn[np.lexsort(drawn.T)], wanted[np.lexsort(wanted.T)])
            assert [to_hex(each.get_facecolor()[0]) for each in marks] == [BLUE, ORANGE][: len(marks)]
            assert ax.get_xlim() == ax.get_ylim()


def test_intervals_are_drawn_along_both_axes(by_label):
    ax = plots.reach_by_label(by_label, against="prose").axes[1]  # entropy, on code
    across, along = (each for each in ax.collections[:2] if isinstance(each, LineCollection))
    here = by_label["entropy_interval"].sel(layer=by_label["kind"].values == "linear_attention")
    for lines, label, axis in ((across, "prose", 0), (along, "code", 1)):
        ends = np.array([segment[:, axis] for segment in lines.get_segments()])
        wanted = here.sel(label=label).transpose("layer", "head", "bound").values.reshape(-1, 2)
        assert_allclose(ends, wanted)


def test_what_cannot_be_compared(statistics, by_label):
    with pytest.raises(BadArgument, match=r"against='verse'\): .* have the labels code, prose, recall\.\n.* for two"):
        plots.reach_by_label(by_label, against="verse")
    with pytest.raises(
        BadArgument, match=r"these statistics have no labels\.\nDraw what qwenlab\.stats\.reach\(recording, by"
    ):
        plots.reach_by_label(statistics, against="prose")
    with pytest.raises(BadArgument, match=r"have the labels prose\.\n.* for two labels or more"):
        plots.reach_by_label(by_label.sel(label=["prose"]), against="prose")
    with pytest.raises(MissingVariable, match="No horizon"):
        plots.reach_by_label(by_label.drop_vars("horizon"), against="prose")
    with pytest.raises(BadArgument, match="by label"):
        plots.mass_by_distance(by_label)
