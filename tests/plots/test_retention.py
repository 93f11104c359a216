"""Figures of stored pairs: what is drawn is what the statistic says."""

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from numpy.testing import assert_allclose

from qwenlab import plots, stats
from qwenlab.errors import BadArgument, MissingVariable
from tests.planted.states import made_states
from tests.plots.drawn import checked

BLUE = "#0072b2"


@pytest.fixture(scope="module")
def recording():
    return made_states().recording


def curves(ax, points):
    """Return the lines with this number of points."""
    return [line.get_ydata() for line in ax.get_lines() if len(line.get_xdata()) == points]


@pytest.mark.parametrize("by", ["distance", "writes"])
def test_every_head_the_median_one_and_decay(recording, by):
    data = stats.retention(recording, by=by)
    figure = plots.retention(data, layers=[0, 5])
    data = data.dropna(f"{by}_bin", how="all", subset=["survival"])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["layer 0", "layer 5"]
    for ax, layer in zip(figure.axes, (0, 5), strict=True):
        here = data.sel(layer=layer)
        drawn = curves(ax, data.sizes[f"{by}_bin"])
        assert_allclose(drawn[:4], here["survival"])
        assert_allclose(drawn[4:], [here["survival"].median("head"), here["decay_alone"].median("head")])
        assert to_hex(ax.get_lines()[0].get_color()) == BLUE
    assert "since" in figure.get_supxlabel()


def test_a_colour_a_label(recording):
    data = stats.retention(recording, by_label=True)
    axes = plots.retention_by_label(data).axes
    for ax, name in zip(axes, ("survival", "error"), strict=True):
        bands = [each for each in ax.collections if isinstance(each, PolyCollection)]
        for label, line, band in zip(("code", "prose"), ax.get_lines(), bands, strict=False):
            here = data[name].sel(label=label).dropna("distance_bin", how="all")
            assert line.get_label() == label
            assert_allclose(line.get_ydata(), here.median(["layer", "head"]))
            assert line.get_color() == to_hex(band.get_facecolor()[0]).upper()
            low, high = here.quantile([0.25, 0.75], ["layer", "head"])
            assert_allclose(np.sort(np.unique(band.get_paths()[0].vertices[:, 1])), np.unique([low, high]))


def test_labels_of_other_lengths_have_lines_of_other_lengths(recording):
    """A bin that a label does not have makes neither a gap nor a warning in its line."""
    data = stats.retention(recording, by_label=True).copy(deep=True)
    for name in ("survival", "error"):
        data[name][dict(label=0, distance_bin=slice(4, None))] = np.nan
    lengths = [len(line.get_xdata()) for line in plots.retention_by_label(data).axes[0].get_lines()[:2]]
    assert lengths[0] == 4 < lengths[1]


def test_layers_that_are_not_there(recording):
    with pytest.raises(
        BadArgument, match=r"^layers=\[3\]: these statistics have layers \[0, 1, 2, 4, 5, 6\]\.\nGive some of these\.$"
    ):
        plots.retention(stats.retention(recording), layers=[0, 3])


def test_what_cannot_be_drawn(recording):
    with pytest.raises(MissingVariable, match=r"Draw what qwenlab\.stats\.retention\(recording\) returns"):
        plots.retention(stats.state_rank(recording))
    with pytest.raises(MissingVariable, match=r"of all queried pairs\.\nDraw what .*by='distance'\) returns\.$"):
        plots.retention(stats.retention(recording, by=None))
    with pytest.raises(BadArgument, match=r"^These statistics are of all labels together\.\nDraw what .*by_label=True"):
        plots.retention_by_label(stats.retention(recording))
    many = stats.retention(made_states(labels=list("abcdefg"), sequences=7, length=40).recording, by_label=True)
    with pytest.raises(
        BadArgument, match=r"^7 labels, but only 6 colours\.\nSelect some: \.sel\(label=\['a', 'b'\]\)\.$"
    ):
        plots.retention_by_label(many)


@pytest.mark.slow
@pytest.mark.parametrize("draw", ["retention", "retention_by_label"])
@pytest.mark.parametrize("layers", [2, 8, 20])
def test_no_text_is_cut_off_and_settings_stay(draw, layers):
    made = made_states(layers=layers, sequences=8, length=40).recording
    checked(lambda: getattr(plots, draw)(stats.retention(made, by_label=draw != "retention")))
