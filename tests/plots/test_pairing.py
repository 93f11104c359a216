"""A plot lives in a file with the name of the file of the statistic it draws."""

import ast
import inspect

import pytest

from qwenlab import plots, stats

NO_PLOTS = {"COLOURS", "LABELS", "style"}
VIEWS = {
    *("ablation_map", "ablation_ranking"),  # two views of stats.ablations
    *("mass_by_distance", "reach_by_label", "reconstruction", "sink"),  # parts of stats.reach
    *("capacity", "interference", "retention_by_label", "state_by_head", "state_precision_by_head"),
    "gate_by_token",  # a part of stats.attention_map
}
"""Plots that draw a part of a statistic, or several: their names are their own."""


def file_of(thing):
    return thing.__module__.rpartition(".")[2]


def statistic_of(plot):
    """The statistic that the first `need(..., "name", ...)` of a plot asks for."""
    for function in (plot, *vars(inspect.getmodule(plot)).values()):
        if inspect.isfunction(function) and function.__module__ == plot.__module__:
            for node in ast.walk(ast.parse(inspect.getsource(inspect.unwrap(function)))):
                if getattr(getattr(node, "func", None), "id", "") in ("need", "need_labels"):
                    return node.args[1].value
    raise AssertionError(f"{plot.__name__} does not check what it draws")


PLOTS = sorted(set(plots.__all__) - NO_PLOTS)


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_in_the_file_of_its_statistic(name):
    plot = getattr(plots, name)
    statistic = file_of(getattr(stats, statistic_of(plot)))
    assert file_of(plot) == statistic or file_of(plot).startswith(f"{statistic}_")


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_of_one_statistic_has_its_name(name):
    assert (name in stats.__all__) != (name in VIEWS)
    if name not in VIEWS:
        assert statistic_of(getattr(plots, name)) == name
