"""The map of patches: each cell is in its place, in the colour of its share, filled where it is significant."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from numpy.testing import assert_allclose

from qwenlab import plots, stats
from qwenlab.errors import MissingVariable, NothingMeasured
from tests.planted.sweeps import made_patching
from tests.plots.drawn import checked, legend

BLUE, ORANGE = "#0072b2", "#e69f00"


@pytest.fixture(scope="module")
def statistics():
    return stats.patching(made_patching(parts=("residual", "mixer"), pairs=10, seed=2))


def test_cells_are_the_share_of_each_layer_and_position(statistics):
    figure = checked(lambda: plots.patching(statistics))
    limit = max(1, float(np.abs(statistics["restored"]).max()))
    for ax, part in zip(figure.axes, ("residual", "mixer"), strict=False):
        here = statistics.isel(site=np.flatnonzero(statistics["part"].values == part))
        assert ax.get_title(loc="left") == part
        _, marks = [one for one in ax.collections if isinstance(one, PolyCollection)]
        boxes = [path.get_extents() for path in marks.get_paths()]
        middles = [[(box.x0 + box.x1) / 2, np.round((box.y0 + box.y1) / 2)] for box in boxes]
        assert_allclose(middles, [[x, y] for y, x in np.ndindex(8, 6)])
        assert_allclose([box.height for box in boxes], np.where(here["significant"].values.ravel(), 0.88, 0.18))
        expected = mpl.colormaps["PRGn"](0.5 + here["restored"].values.ravel() / (2 * limit))
        assert_allclose(marks.get_facecolors(), expected, atol=0.01)
        strip = [to_hex(patch.get_facecolor()) for patch in ax.patches if isinstance(patch, Rectangle)]
        assert strip == ([BLUE] * 3 + [ORANGE]) * 2
        assert [label.get_text() for label in ax.get_yticklabels()] == list(map(str, range(8)))
        assert ax.get_ylabel() == "layer"
    labels = figure.axes[1].get_xticklabels()
    assert [label.get_text() for label in labels] == ["·a\n0", "·b\n1", "…\n2", "·d\n3", "·e\n4", "·f\n5"]
    assert [label.get_fontweight() for label in labels] == ["normal"] * 2 + ["bold"] + ["normal"] * 3
    assert figure.axes[1].get_xlabel() == "token and position (tokens)"
    assert figure.axes[-1].get_ylabel() == "share restored"
    assert legend(figure) == ["DeltaNet", "attention", "significant", "not significant"]
    low, high = statistics["total_interval"].values
    said = (
        f"n = 10 pairs · 1 = full effect of the source: {float(statistics['total']):+.2f} [{low:.2f}, {high:.2f}] nat"
    )
    assert figure._supxlabel.get_text() == said


def test_tokens_that_differ_in_all_pairs_are_next_to_each_other():
    made = made_patching()
    made["source_token"][:, 2], made["target_token"][:, 2] = "Rome\n", "Paris"
    figure = checked(lambda: plots.patching(stats.patching(made)))
    assert figure.axes[0].get_xticklabels()[2].get_text() == "Rome⏎→Paris  2"


def test_white_space_is_seen_and_what_no_font_has_is_not_drawn():
    made = made_patching(positions=5)
    made["source_token"][:] = made["target_token"][:] = ["\t\n", "é", "\x1b", "a b", "…"]
    ticks = plots.patching(stats.patching(made)).axes[0].get_xticklabels()
    assert [tick.get_text().split("\n")[0] for tick in ticks] == ["⇥⏎", "é", "�", "a·b", "…"]


def test_heads_are_named_and_one_pair_has_no_interval():
    made = made_patching(pairs=1, parts=("mixer.heads",)).assign_attrs(heads="0, 3")
    words = plots.patching(stats.patching(made))._supxlabel.get_text()
    assert words.endswith(" nat · heads 0, 3")
    assert "[" not in words


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "positions"), [(8, 3), (64, 6), (8, 48), (40, 100)])
def test_nothing_is_cut_off_however_many(layers, positions):
    figure = checked(
        lambda: plots.patching(stats.patching(made_patching(layers=layers, positions=positions), resamples=20))
    )
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert len(ticks) <= 48
    if positions == 100:
        assert ticks[:3] == ["0", "3", "6"]


def test_what_it_refuses():
    made = made_patching(layers=4)
    nothing = stats.patching(made.assign(source_logprob=made["target_logprob"] - 1))
    with pytest.raises(NothingMeasured, match=r"after the source, its answer is -1 nat likelier .*, \[-1, -1\]"):
        plots.patching(nothing)
    with pytest.raises(MissingVariable, match=r"Draw what qwenlab\.stats\.patching"):
        plots.patching(made)
