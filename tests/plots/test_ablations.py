"""The map of ablations: each cell is in its place, in the colour of its effect, filled where it is significant."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.patches import Rectangle
from numpy.testing import assert_allclose

from qwenlab import plots, stats
from qwenlab.errors import MissingVariable
from tests.planted.sweeps import made_ablated_acceptance, made_sweep
from tests.plots.drawn import checked, legend

BLUE, ORANGE = "#0072b2", "#e69f00"


@pytest.fixture(scope="module")
def statistics():
    return stats.ablations(made_sweep(planted={"mixer 3": 0.4, "mlp 6": -0.3}, seed=4))


def cells(ax):
    """Of each task the centres, heights and colours of the cells' marks: grounds, which are drawn first, left out."""
    found = []
    for one in [each for each in ax.collections if isinstance(each, PolyCollection)][1::2]:
        boxes = [path.get_extents() for path in one.get_paths()]
        middles = np.array([[(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2] for box in boxes])
        found.append((middles, np.array([box.height for box in boxes]), one.get_facecolors()))
    return found


def strip(ax):
    return [to_hex(patch.get_facecolor()) for patch in ax.patches if isinstance(patch, Rectangle)]


def words(ax):
    return [text.get_text() for text in ax.texts]


def test_cells_are_the_harm_of_each_layer_and_task(statistics):
    figure = checked(lambda: plots.ablation_map(statistics))
    for ax, part in zip(figure.axes, ("mixer", "mlp"), strict=False):
        here = statistics.isel(ablation=np.flatnonzero(statistics["unit"].values == part))
        assert ax.get_title(loc="left") == part
        assert strip(ax) == ([BLUE] * 3 + [ORANGE]) * 2
        assert [label.get_text() for label in ax.get_xticklabels()] == list(map(str, range(8)))
        assert [label.get_text() for label in ax.get_yticklabels()] == ["code", "recall"]
        for row, (middles, heights, colours) in enumerate(cells(ax)):
            one, largest = here.isel(task=row), float(np.abs(statistics["effect"].isel(task=row)).max())
            assert_allclose(middles[:, 0], range(8))
            assert (np.round(middles[:, 1]) == row).all()
            assert_allclose(heights, np.where(one["significant"], 0.88, 0.18))
            share = one["effect"].values / largest
            expected = mpl.colormaps["PRGn_r"](0.5 + np.sign(share) * np.sqrt(np.abs(share)) / 2)
            assert_allclose(colours, expected, atol=0.01)
            assert f"{largest:.3g}" in words(ax)
        assert "largest\n(nat/token)" in words(ax)
    assert legend(figure) == ["DeltaNet", "attention", "significant", "not significant"]
    assert figure.axes[-1].get_ylabel() == "rise of the loss\n(share of the task's largest)"


def test_values_are_written_into_few_cells(statistics):
    ax = plots.ablation_map(statistics).axes[0]
    values = statistics["effect"].isel(ablation=np.flatnonzero(statistics["unit"].values == "mixer"))
    assert f"{float(values.sel(ablation='mixer 3')[0]):.2g}" in words(ax)
    assert len(words(ax)) == 16 + 2 + 1
    many = plots.ablation_map(stats.ablations(made_sweep(layers=40, of=("mixer",), controls=0), resamples=50))
    assert len(words(many.axes[0])) == 2 + 1


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "0.12"), (-0.0064, "-0.0064"), (-0.00062, "-6e-4"), (1.2e-7, "1e-7"), (0, "0")]
)
def test_numbers_are_short(value, text):
    sweep = made_sweep(layers=2, of=("mixer",), tasks={"code": 4}, controls=0)
    statistics = stats.ablations(sweep, resamples=10)
    statistics["effect"][:] = [[value, 1.0]]
    assert text in words(plots.ablation_map(statistics).axes[0])


def test_parts_of_one_layer_have_rows_of_their_own():
    statistics = stats.ablations(made_sweep(layers=4, of=("head",), slots=3, controls=0), resamples=50)
    ax = checked(lambda: plots.ablation_map(statistics)).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1", "2"] * 2
    (_, first), (_, second) = ((task, cells(ax)[task][0]) for task in (0, 1))
    assert_allclose(first[:, 0], np.repeat(range(4), 3))
    assert_allclose(np.round(first[:, 1]), np.tile(range(3), 4))
    assert (np.diff(np.sort(np.unique(np.round(np.concatenate([first, second])[:, 1], 1)))) > 0).all()
    assert second[:, 1].min() > first[:, 1].max() + 1  # tasks stand apart
    assert {"code", "recall"} <= set(words(ax))


def test_gates_have_their_words_though_not_every_layer_has_all():
    sweep = made_sweep(layers=4, of=("gate", "decay"), controls=0)
    statistics = stats.ablations(sweep, resamples=50)
    statistics = statistics.assign_coords(unit=("ablation", ["gate"] * 8)).isel(ablation=[0, 1, 2, 3, 4, 6])
    ax = plots.ablation_map(statistics).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["gate", "decay"] * 2
    middles = cells(ax)[0][0]
    assert_allclose(middles[:, 0], [0, 1, 2, 3, 0, 2])
    assert_allclose(np.round(middles[:, 1]), [0, 0, 0, 0, 1, 1])


def test_what_is_of_several_layers_has_a_column_with_its_name():
    statistics = stats.ablations(made_sweep(layers=2, of=("kind",), controls=0), resamples=50)
    kinds = ["linear_attention", ""]
    statistics = statistics.assign_coords(layer=("ablation", [-1, -1]), kind=("ablation", kinds))
    statistics = statistics.assign_coords(ablation=["all linear_attention", "everything"])
    ax = checked(lambda: plots.ablation_map(statistics)).axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["all linear_attention", "everything"]
    assert strip(ax) == [BLUE, to_hex("0.25")]


def test_the_strongest_colour_is_the_end_of_the_map(statistics):
    rows, _, colours = cells(plots.ablation_map(statistics).axes[0])[0]
    assert_allclose(colours[3], to_rgba(mpl.colormaps["PRGn_r"](1.0)), atol=0.01)
    assert_allclose(rows[3], [3, 0], atol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [dict(layers=40), dict(layers=8, of=("expert",), slots=64, controls=0), dict(layers=4, of=("head",), slots=8)],
)
def test_nothing_is_cut_off_however_many(how):
    checked(lambda: plots.ablation_map(stats.ablations(made_sweep(**how), resamples=20)))


def test_of_acceptance_too():
    figure = checked(lambda: plots.ablation_map(stats.ablated_acceptance(made_ablated_acceptance())))
    assert "largest\n(token)" in words(figure.axes[0])


def test_no_harm_at_all_is_drawn():
    statistics = stats.ablations(made_sweep(layers=2, tasks={"code": 3}, controls=0), resamples=10)
    plots.ablation_map(statistics.assign(effect=statistics["effect"] * 0)).draw_without_rendering()


def test_other_data_are_refused():
    with pytest.raises(MissingVariable, match=r"Draw what qwenlab\.stats\.ablations\(recording\) returns"):
        plots.ablation_map(made_sweep())
