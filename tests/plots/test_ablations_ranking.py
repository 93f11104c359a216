"""The ranking: values, intervals, controls and ranks are the statistics', in the order of the effect."""

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from numpy.testing import assert_allclose

from qwenlab import plots, stats
from qwenlab.errors import BadArgument, MissingVariable
from tests.planted.sweeps import made_ablated_acceptance, made_sweep
from tests.plots.drawn import checked, legend

BLUE, ORANGE, GREY = "#0072b2", "#e69f00", "#8a8a8a"


@pytest.fixture(scope="module")
def told():
    return stats.ablations(made_sweep(planted={"mixer 3": 0.4, "mlp 6": -0.3}, seed=4))


def segments(ax):
    (lines,) = [one for one in ax.collections if isinstance(one, LineCollection)]
    return np.array(lines.get_segments())[:, :, 0]


@pytest.mark.parametrize("task", ["code", "recall"])
def test_values_intervals_and_ranks(told, task):
    figure = checked(lambda: plots.ablation_ranking(told, task))
    left, right = figure.axes
    here = told.sel(task=task)
    here = here.isel(ablation=np.argsort(-here["effect"].values))
    controls, marks = [one for one in left.collections if isinstance(one, PathCollection)]
    assert_allclose(marks.get_offsets(), np.stack([here["effect"], np.arange(16)], axis=1))
    assert_allclose(segments(left), here["effect_interval"].transpose("ablation", "bound"))
    ranks = np.stack([here["rank_low"] - 0.4, here["rank_high"] + 0.4], axis=1)
    assert_allclose(segments(right), ranks)
    colours = [BLUE if kind == "linear_attention" else ORANGE for kind in here["kind"].values]
    assert [to_hex(each) for each in marks.get_edgecolors()] == colours
    white = [to_hex(each) == "#ffffff" for each in marks.get_facecolors()]
    assert white == [not significant for significant in here["significant"].values]
    rows = {name: row for row, name in enumerate(here["ablation"].values)}
    expected = [(float(here["control_effect"][at]), rows[of]) for at, of in enumerate(here["control_of"].values)]
    assert_allclose(controls.get_offsets(), expected)
    assert to_hex(controls.get_edgecolors()[0]) == GREY
    assert [label.get_text() for label in left.get_yticklabels()] == list(rows)
    assert left.get_title(loc="left") == task
    assert left.get_xlabel() == "rise of the loss (nat/token)"
    assert right.get_xlabel() == "ranks that the data allow"
    assert legend(figure) == ["DeltaNet", "attention", "significant", "not significant", "controls"]
    assert figure._supxlabel.get_text() == "n = 16 texts · bars: 95% intervals"


def test_only_the_most_harmful_are_shown_and_their_controls(told):
    figure = plots.ablation_ranking(told, "code", most=3)
    left, right = figure.axes
    assert len(left.get_yticklabels()) == 3
    assert left.get_title(loc="left") == "code; the first 3 of 16"
    assert len(next(one for one in left.collections if isinstance(one, PathCollection)).get_offsets()) == 9
    assert right.get_xlim()[1] > 16  # ranks are among all


@pytest.mark.parametrize("layers", [1, 40])
def test_nothing_is_cut_off_however_many(layers):
    told = stats.ablations(made_sweep(layers=layers, of=("mixer", "mlp"), controls=1), resamples=20)
    checked(lambda: plots.ablation_ranking(told, "code"))


def test_without_controls_the_legend_has_none():
    told = stats.ablations(made_sweep(tasks={"code": 4}, controls=0), resamples=20)
    assert "controls" not in legend(plots.ablation_ranking(told))


def test_of_acceptance_too():
    told = stats.ablated_acceptance(made_ablated_acceptance())
    left, _ = plots.ablation_ranking(told, "code").axes
    assert left.get_xlabel() == "fall of the acceptance length (tokens)"


def test_what_it_refuses(told):
    with pytest.raises(BadArgument, match=r"several tasks: code, recall\.\nPick one: task='code'"):
        plots.ablation_ranking(told)
    with pytest.raises(BadArgument, match=r"task='cod': these statistics have code, recall"):
        plots.ablation_ranking(told, "cod")
    with pytest.raises(BadArgument, match=r"most=0"):
        plots.ablation_ranking(told, "code", most=0)
    with pytest.raises(MissingVariable, match=r"Draw what qwenlab\.stats\.ablations"):
        plots.ablation_ranking(made_sweep())
