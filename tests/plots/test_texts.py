"""The figure of means over texts: what is drawn is what the statistic says."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from numpy.testing import assert_allclose

from qwenlab import plots, stats
from qwenlab.errors import BadArgument, MissingVariable
from tests.plots.drawn import checked

DOMAINS, FORMATS = ["code", "prose", "recall"], ["bfloat16", "int8"]


@pytest.fixture(scope="module")
def score():
    values = np.random.default_rng(0).normal(2, 0.1, (3, 2, 10))
    coords = {"domain": DOMAINS, "format": FORMATS}
    return xr.DataArray(values, coords, ("domain", "format", "text"), attrs={"units": "nat", "long_name": "loss"})


def test_a_row_and_a_colour_each(score):
    statistics = stats.mean_over_texts(score)
    ax = plots.mean_over_texts(statistics).axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == DOMAINS
    lines = [each for each in ax.collections if isinstance(each, LineCollection)]
    for format, marks, ends in zip(FORMATS, ax.get_lines(), lines, strict=True):
        here = statistics.sel(format=format)
        assert marks.get_label() == format
        assert_allclose(marks.get_xdata(), here["mean"])
        assert_allclose(marks.get_ydata(), range(3), atol=0.4)
        assert_allclose([segment[:, 0] for segment in ends.get_segments()], here["mean_interval"])
        assert to_hex(ends.get_color()[0]) == marks.get_color().lower()
    assert ax.get_xlabel() == "loss (nat)"


def test_only_of_a_difference_nothing_is_drawn(score):
    """That is, where nothing has changed."""
    base = score.isel(format=0, drop=True)
    at_zero = [
        list(line.get_xdata())
        for line in plots.mean_over_texts(stats.mean_over_texts(score, less=base)).axes[0].get_lines()
    ]
    assert [0, 0] in at_zero
    figure = plots.mean_over_texts(stats.mean_over_texts(base))
    assert [0, 0] not in [list(line.get_xdata()) for line in figure.axes[0].get_lines()]
    assert figure.get_supxlabel() == "n = 10 texts per row · bars: 95% intervals"


def test_what_cannot_be_drawn(score):
    for wrong in (score.isel(domain=0, format=0), score.expand_dims("layer")):
        with pytest.raises(BadArgument, match=r"one or two dimensions, the second of at most 6; these have:"):
            plots.mean_over_texts(stats.mean_over_texts(wrong))
    wide = xr.concat([score.isel(format=0, drop=True)] * 7, "format").transpose("domain", "format", "text")
    with pytest.raises(BadArgument, match=r"these have: domain 3, format 7\.\nSelect a part with \.sel"):
        plots.mean_over_texts(stats.mean_over_texts(wide))
    with pytest.raises(MissingVariable, match="No mean_interval"):
        plots.mean_over_texts(stats.mean_over_texts(score).drop_vars("mean_interval"))


def test_no_text_is_cut_off_and_settings_stay(score):
    checked(lambda: plots.mean_over_texts(stats.mean_over_texts(score)))
    checked(lambda: plots.mean_over_texts(stats.mean_over_texts(score.isel(domain=0))))
