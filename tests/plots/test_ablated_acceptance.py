"""Acceptance under ablations by layer: what is drawn is what the statistic says."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from numpy.testing import assert_allclose

from qwenlab import plots, stats
from qwenlab.errors import BadArgument, MissingVariable
from tests.planted.sweeps import made_ablated_acceptance, made_sweep
from tests.plots.drawn import checked, legend

BLUE, ORANGE = "#0072b2", "#e69f00"


@pytest.fixture(scope="module")
def told():
    return stats.ablated_acceptance(made_ablated_acceptance(seed=1, controls=4))


def test_points_intervals_and_controls(told):
    figure = checked(lambda: plots.ablated_acceptance(told))
    place = np.concatenate([np.arange(8) - 0.175, np.arange(8) + 0.175])  # mixers left of the MLPs of their layers
    for ax, task in zip(figure.axes, ("code", "recall"), strict=True):
        here = told.sel(task=task)
        controls, mixers, mlps = [one for one in ax.collections if isinstance(one, PathCollection)]
        for rows, marks in ((slice(0, 8), mixers), (slice(8, 16), mlps)):
            assert_allclose(marks.get_offsets(), np.stack([place[rows], here["effect"][rows]], axis=1))
            assert [to_hex(each) for each in marks.get_edgecolors()] == ([BLUE] * 3 + [ORANGE]) * 2
            white = [to_hex(each) == "#ffffff" for each in marks.get_facecolors()]
            assert white == [not each for each in here["significant"].values[rows]]
        (lines,) = [one for one in ax.collections if isinstance(one, LineCollection)]
        drawn = np.array(lines.get_segments())
        assert_allclose(drawn[:, 0, 0], place)
        assert_allclose(drawn[:, :, 1], here["effect_interval"].transpose("ablation", "bound"))
        at = dict(zip(here["ablation"].values, place, strict=True))
        whose = [at[name] for name in here["control_of"].values]
        assert_allclose(controls.get_offsets(), np.stack([whose, here["control_effect"]], axis=1))
        low, high = here["clean_acceptance_length_interval"].values
        said = f"{float(here['clean_acceptance_length']):.2f} [{low:.2f}, {high:.2f}]"
        assert ax.get_title(loc="left") == f"{task}, n = 16 texts; without ablation {said} tokens per round"
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == list(map(str, range(8)))
    assert figure.axes[-1].get_xlabel() == "layer"
    assert figure._supylabel.get_text() == "fall of the acceptance length (tokens)"
    assert figure._supxlabel.get_text() == "bars: 95% intervals · rule greedy · depth 3 · teacher-forced text"
    assert legend(figure) == ["DeltaNet", "attention", "mixer", "mlp", "significant", "not significant", "controls"]


def test_what_has_no_one_layer_stands_at_the_right_under_its_name(told):
    data = told.assign_coords(
        layer=("ablation", [*range(8), *[-1] * 8]),
        ablation=[*told["ablation"].values[:8], "all full_attention", *told["ablation"].values[9:]],
    ).isel(ablation=slice(9), control=[])
    figure = checked(lambda: plots.ablated_acceptance(data))
    labels = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert labels == [*map(str, range(8)), "all\nfull\nattention"]
    marks = [one for one in figure.axes[0].collections if isinstance(one, PathCollection)]
    assert marks[-1].get_offsets()[0, 0] > 8
    assert "controls" not in legend(figure)


@pytest.mark.parametrize("layers", [2, 40])
def test_nothing_is_cut_off_however_many(layers):
    told = stats.ablated_acceptance(made_ablated_acceptance(layers=layers, tasks={"code": 1}), resamples=20)
    figure = checked(lambda: plots.ablated_acceptance(told))
    assert "[" not in figure.axes[0].get_title(loc="left")  # one text has no interval


def test_what_it_refuses(told):
    many = made_ablated_acceptance(layers=2, of=tuple("abcdefg"), tasks={"code": 3}, controls=0)
    with pytest.raises(BadArgument, match="7 sorts of parts, but only 6 markers"):
        plots.ablated_acceptance(stats.ablated_acceptance(many, resamples=20))
    with pytest.raises(MissingVariable, match=r"Draw what qwenlab\.stats\.ablated_acceptance"):
        plots.ablated_acceptance(stats.ablations(made_sweep(layers=2), resamples=20))
