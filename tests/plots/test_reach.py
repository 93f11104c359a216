"""Figures of reach and of maps: what is drawn is what the statistic says, in the colours of the kinds."""

import io
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle
from numpy.testing import assert_allclose

from qwenlab import plots, stats
from qwenlab.errors import BadArgument, MissingVariable
from tests.planted.maps import made_maps

BLUE, ORANGE = "#0072b2", "#e69f00"


@pytest.fixture(scope="module")
def recording():
    return made_maps(labels=["code"]).recording


@pytest.fixture(scope="module")
def statistics(recording):
    return stats.reach(recording)


@pytest.fixture(scope="module")
def maps(recording):
    return [stats.attention_map(recording, layer=layer, head=1) for layer in (0, 3)]


def of(ax, kind):
    return [each for each in ax.collections if isinstance(each, kind)]


def test_reach_draws_each_heads_horizon_least_far_first(statistics):
    ax = plots.reach(statistics).axes[0]
    lines = of(ax, LineCollection)
    assert [to_hex(line.get_color()[0]) for line in lines] == [BLUE, BLUE, BLUE, ORANGE] * 2
    for place, line in enumerate(lines):
        here = statistics["horizon"].isel(layer=place).dropna("head")
        here = here.isel(head=np.argsort(here.sel(share=0.9).values, kind="stable"))
        assert_allclose([segment[:, 1] for segment in line.get_segments()], here)
        assert_allclose([segment[0, 0] for segment in line.get_segments()], place, atol=0.5)
    assert ax.get_ylabel() == "50 to 90% horizon\n(tokens)"


def test_reach_draws_every_share_with_its_interval(statistics):
    axes = plots.reach(statistics).axes
    names = ["entropy", "first_mass", "output_first", "previous_mass", "induction", "negative"]
    assert len(axes) == 1 + len(names)
    for ax, name in zip(axes[1:], names, strict=True):
        drawn = np.concatenate([dots.get_offsets()[:, 1] for dots in of(ax, PathCollection)])
        more = {"induction": "induction_even", "first_mass": "first_even", "output_first": "gated_output_first"}
        wanted = [statistics[name], *([statistics[more[name]]] if name in more else [])]
        values = np.concatenate([each.values[~np.isnan(each.values)] for each in wanted])
        assert_allclose(np.sort(drawn), np.sort(values))
        ends = np.concatenate([segment[:, 1] for line in of(ax, LineCollection) for segment in line.get_segments()])
        interval = statistics[f"{name}_interval"].values
        assert_allclose(np.sort(ends), np.sort(interval[~np.isnan(interval)]))
    assert axes[-1].get_xlabel() == "layer"


def test_reach_of_one_kind_leaves_out_what_it_has_not():
    statistics = stats.reach(made_maps(kinds=["full_attention"]).recording)
    assert [ax.get_ylabel().split("\n")[0] for ax in plots.reach(statistics).axes][-1] == "induction"


def test_a_map_has_the_shades_of_its_kind_and_red_for_less_than_nothing(maps):
    figure = plots.attention_map(maps)
    for ax, data, colour in zip(figure.axes, maps, (BLUE, ORANGE), strict=False):
        (mesh,) = ax.findobj(QuadMesh)
        assert_allclose(mesh.get_array().filled(0), np.nan_to_num(data["weight"].values))
        most = float(abs(data["weight"])[data.sizes["query"] // 2 :].max())  # of the later half of the rows
        assert mesh.norm.vmax == pytest.approx(most)
        drawn = mesh.get_cmap()(0.75 if colour == BLUE else 0.5)  # half of the most, above nothing
        assert_allclose(drawn[:3], to_rgb(colour), atol=0.02)
    signed = figure.axes[0].findobj(QuadMesh)[0]
    assert signed.norm.vmin == -signed.norm.vmax
    red, _, blue, _ = signed.get_cmap()(0.25)
    assert red > 2 * blue
    assert min(signed.get_cmap()(0.5)[:3]) > 0.98
    assert sum(signed.get_cmap()(0.0)[:3]) < sum(signed.get_cmap()(0.25)[:3])
    assert figure.axes[1].findobj(QuadMesh)[0].norm.vmin == 0
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == [
        "layer 0, head 1 · DeltaNet",
        "layer 3, head 1 · attention",
    ]


def test_tokens_are_named_so_that_they_can_be_read(maps):
    length = maps[0].sizes["key"]
    names = [" a", "\n", "$x$", "averyverylongtoken", *map(str, range(length - 4))]
    figure = plots.attention_map(maps, tokens=names)
    figure.draw_without_rendering()
    for ax in figure.axes[:2]:
        words = [text.get_text() for text in ax.get_xticklabels()]
        assert words[:4] == ["·a", "⏎", "$x$", "averyvery…"]
        assert len(words) == length
        boxes = [text.get_window_extent() for text in ax.get_xticklabels()]
        assert all(one.x1 <= other.x0 + 1 for one, other in pairwise(boxes))


def test_of_many_tokens_only_legible_ones_are_named():
    recording = made_maps(sequences=2, length=160, layers=4, labels=["a"], kinds=["linear_attention"]).recording
    one = stats.attention_map(recording, layer=0, head=0)
    figure = plots.attention_map(one, tokens=["word"] * one.sizes["key"])
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].get_yticklabels()]
    assert len(boxes) > 20
    assert all(abs(one.y0 - other.y0) >= one.height * 0.8 for one, other in pairwise(boxes))


def test_a_part_of_a_map(maps):
    figure = plots.attention_map(maps[0], begin=3, end=8)
    (mesh,) = figure.axes[0].findobj(QuadMesh)
    assert_allclose(mesh.get_array().filled(0), np.nan_to_num(maps[0]["weight"].values[3:8, 3:8]))
    assert figure.axes[0].get_xticklabels()[0].get_text() == "3"
    with pytest.raises(BadArgument, match=r"begin=500, end=None: the map's queries are at positions 0 to \d+\."):
        plots.attention_map(maps[0], begin=500)


def test_weights_that_are_marked_have_a_frame_where_they_are_shown(maps):
    marks = [(5, 2), (7, 3), (2, 1), (90, 0)]  # the third is before the part that is drawn, the last nowhere
    ax = plots.attention_map(maps[0], begin=1, end=8, marks=marks).axes[0]
    frames = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert [patch.get_xy() for patch in frames] == [(1, 4), (2, 6), (0, 1)]
    assert not any(patch.get_fill() for patch in frames)


def test_larger_weights_than_those_of_the_later_half_are_told_by_the_bar(maps):
    one = maps[1].copy(deep=True)
    one["weight"][0, 0] = 0.999
    one["weight"][1:] *= 0.5
    bar = plots.attention_map(one).axes[1]
    (mesh,) = plots.attention_map(one).axes[0].findobj(QuadMesh)
    assert mesh.norm.vmax < 0.6
    assert len(bar.patches) > 0  # the triangle


def test_what_cannot_be_drawn(maps, statistics):
    with pytest.raises(BadArgument, match=r"attention_map\(maps=\[\]\): give at least one map"):
        plots.attention_map([])
    with pytest.raises(MissingVariable, match=r"Draw what qwenlab\.stats\.attention_map\(recording\) returns"):
        plots.attention_map(statistics)
    with pytest.raises(MissingVariable, match=r"Draw what qwenlab\.stats\.reach\(recording\) returns"):
        plots.reach(maps[0])
    with pytest.raises(BadArgument, match="tokens: 2 names for a text of at least 3 tokens"):
        plots.attention_map(maps[0], tokens=["a", "b"])


@pytest.mark.slow
@pytest.mark.parametrize("draw", ["reach", "maps", "named maps"])
def test_no_text_is_cut_off_and_settings_stay(draw, statistics, maps):
    before = dict(mpl.rcParams)
    names = ["token"] * maps[0].sizes["key"]
    figure = {
        "reach": lambda: plots.reach(statistics),
        "maps": lambda: plots.attention_map(maps),
        "named maps": lambda: plots.attention_map(maps, tokens=names),
    }[draw]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3]
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (edge == 255).all()
    assert dict(mpl.rcParams) == before
    figure.savefig(io.BytesIO(), format="pdf")


def test_which_map_is_asked_for(recording):
    with pytest.raises(BadArgument, match=r"layer=9: there are stored maps of layers \[0, 1, 2, 3, 4, 5, 6, 7\]"):
        stats.attention_map(recording, layer=9, head=0)
    with pytest.raises(BadArgument, match=r"head=7: layer 3 has stored maps of heads \[0, 1, 2\]"):
        stats.attention_map(recording, layer=3, head=7)
    with pytest.raises(BadArgument, match=r"text=4: layer 0 has stored maps of texts \[0\]"):
        stats.attention_map(recording, layer=0, head=0, text=4)
