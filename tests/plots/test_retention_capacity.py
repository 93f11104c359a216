"""Figures of what states hold and what takes it: what is drawn is what the statistics say."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import LineCollection, PathCollection
from numpy.testing import assert_allclose

from qwenlab import plots, stats
from qwenlab.errors import BadArgument, MissingVariable
from qwenlab.testing.recordings import made_recording
from tests.planted.states import made_states
from tests.plots.drawn import checked


@pytest.fixture(scope="module")
def lists():
    recording = made_states(labels=["16", "4"], length=60).recording
    return stats.retention(recording, by=None, by_label=True)


@pytest.fixture(scope="module")
def accuracy():
    rng = np.random.default_rng(0)
    coords = {"pairs": [4, 16], "chance": ("text", np.full(12, 0.1))}
    score = xr.DataArray(rng.uniform(0.5, 1, (2, 12)), coords, ("pairs", "text"))
    return stats.mean_over_texts(score)


@pytest.fixture(scope="module")
def heads():
    made = made_recording()
    data = stats.retention(made_states(heads=8).recording, by=None)
    return data.assign(stats.half_life(made).data_vars).assign(stats.key_collision(made).data_vars)


def test_capacity_draws_every_head_and_the_median_one_by_pairs(lists, accuracy):
    left, right = plots.capacity(lists, accuracy).axes
    by_pairs = lists["error"].sel(label=["4", "16"]).transpose("layer", "head", "label").values.reshape(-1, 2)
    lines = [line for line in left.get_lines() if list(line.get_xdata()) == [4, 16]]
    assert_allclose([line.get_ydata() for line in lines], [*by_pairs, np.median(by_pairs, axis=0)])
    assert_allclose(right.get_lines()[0].get_ydata(), accuracy["mean"])
    assert list(right.get_lines()[1].get_ydata()) == [0.1, 0.1]
    (ends,) = [each.get_segments() for each in right.collections if isinstance(each, LineCollection)]
    assert_allclose([segment[:, 1] for segment in ends], accuracy["mean_interval"])
    assert len(plots.capacity(lists).axes) == 1


def test_capacity_needs_numbers_of_pairs(lists):
    made = made_states(length=60).recording
    for wrong in (
        stats.retention(made, by=None, by_label=True),
        stats.retention(made, by=None),
        stats.retention(made_states(labels=["4"], length=60).recording, by_label=True),
    ):
        with pytest.raises(BadArgument, match=r"should be numbers of pairs, without further bins\.\nRead lists of 4"):
            plots.capacity(wrong)
    with pytest.raises(MissingVariable, match="No error"):
        plots.capacity(lists.drop_vars("error"))


def test_interference_draws_both_ends_and_what_lies_between(heads):
    left, right = plots.interference(heads).axes[:2]
    marks = [np.array(each.get_offsets()) for each in left.collections if isinstance(each, PathCollection)]
    for place in range(heads.sizes["layer"]):
        here = heads.isel(layer=place)
        for drawn, name in zip(marks[2 * place :], ("decay_alone", "survival"), strict=False):
            assert_allclose(drawn, np.stack([here["half_life_mean_log"], here[name]], axis=1))
    between = sum(len(each.get_segments()) for each in left.collections if isinstance(each, LineCollection))
    assert between == heads["survival"].size
    group = heads.sizes["head"] // heads.sizes["key_head"]
    assert group == 4
    for place, each in enumerate(each for each in right.collections if isinstance(each, PathCollection)):
        collision = np.repeat(heads["key_collision"].values[place], group)
        assert_allclose(each.get_offsets(), np.stack([collision, heads["overwritten"].values[place]], axis=1))
    with pytest.raises(MissingVariable, match="No key_collision"):
        plots.interference(heads.drop_vars("key_collision"))


@pytest.mark.parametrize("draw", ["capacity", "interference"])
def test_no_text_is_cut_off_and_settings_stay(draw, lists, accuracy, heads):
    checked(lambda: plots.capacity(lists, accuracy) if draw == "capacity" else plots.interference(heads))
