"""The figure of losses: what is drawn is what the statistic says."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from numpy.testing import assert_allclose

from qwenlab import plots, stats
from qwenlab.errors import BadArgument, MissingVariable
from qwenlab.plots.style import PALETTE
from tests.stats.test_losses import made

DOMAINS = ("code", "prose", "arithmetic", "recall", "$x_1$", "own")


@pytest.fixture(scope="module")
def statistics():
    return stats.losses(made([(domain, 20) for domain in DOMAINS for _ in range(3)]))


@pytest.mark.parametrize("domains", [1, 2, 6])
def test_values_intervals_and_colours_are_the_statistics(statistics, domains):
    some = statistics.isel(domain=slice(domains))
    left, right = plots.losses(some).axes
    for place in range(domains):
        line, bits = left.lines[place], right.lines[place]
        assert_allclose(line.get_xdata(), some["loss"][place])
        assert_allclose(np.round(line.get_ydata()), range(3))
        assert_allclose(bits.get_xdata(), [some["bits_per_byte"].sel(token_class="all")[place]])
        assert {line.get_color(), bits.get_color()} == {PALETTE[place]}
    bars = [one for one in left.collections if isinstance(one, LineCollection)]
    drawn = np.array([segment[:, 0] for one in bars for segment in one.get_segments()])
    assert_allclose(drawn, some["loss_interval"].values.reshape(-1, 2))
    assert [text.get_text() for text in right.get_yticklabels()] == list(DOMAINS[:domains])
    assert [text.get_text() for text in left.get_yticklabels()] == ["all", "repeated", "first"]


def test_all_texts_together(statistics):
    whole = stats.losses(made([("code", 20), ("prose", 30)]), by_domain=False)
    left, right = plots.losses(whole).axes
    assert_allclose(left.lines[0].get_xdata(), whole["loss"])
    assert [text.get_text() for text in right.get_yticklabels()] == ["all texts"]


@pytest.mark.parametrize("domains", [1, 6])
def test_nothing_is_cut_off_and_settings_stay(statistics, domains):
    with mpl.rc_context({"font.size": 17.0}):
        before = dict(mpl.rcParams)
        figure = plots.losses(statistics.isel(domain=slice(domains)))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        assert dict(mpl.rcParams) == before
    picture = np.asarray(canvas.buffer_rgba())[..., :3]
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (edge == 255).all()
    assert plt.get_fignums() == []
    assert [ax.get_xlabel() for ax in figure.axes] == ["next-token loss (nat/token)", "bits per byte (bit/byte)"]


def test_the_note_has_the_counts(statistics):
    words = plots.losses(statistics)._supxlabel.get_text()
    assert words == "n = 360 tokens of 18 texts · bars: 95% intervals"


def test_more_domains_than_colours_are_refused():
    seven = stats.losses(made([(f"domain {number}", 3) for number in range(7)]))
    with pytest.raises(BadArgument, match="7 domains, but only 6 colours"):
        plots.losses(seven)


def test_other_data_are_refused():
    with pytest.raises(MissingVariable, match=r"Draw what qwenlab\.stats\.losses\(recording\) returns"):
        plots.losses(made([("code", 3)]))
