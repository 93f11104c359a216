"""Every public plot draws in the caller's axes, and nowhere else; or in those of a new figure."""

import inspect
import io

import pytest
from matplotlib.figure import Figure

from qwenlab import plots
from qwenlab.errors import BadArgument
from tests.plots.examples import ONE, examples

PLOTS = sorted(set(plots.__all__) - {"COLOURS", "LABELS", "style"})


def call(name, **more):
    example = examples()[name]
    return getattr(plots, name)(*example.args, **example.kwargs, **more)


def count(name):
    return 1 if examples()[name].axes == ONE else examples()[name].axes


def in_axes(name, axes):
    """Call a plot with these axes, under the name of its argument."""
    return call(name, ax=axes[0]) if examples()[name].axes == ONE else call(name, axes=axes)


def is_empty(ax):
    labels = (ax.get_xlabel(), ax.get_ylabel(), ax.get_title(), ax.get_title(loc="left"))
    return not (ax.has_data() or ax.texts or ax.get_legend() or any(labels))


@pytest.mark.parametrize("name", PLOTS)
def test_it_draws_on_the_given_axes_and_on_nothing_else(name):
    figure, size = Figure(figsize=(12, 2 + 2 * count(name)), layout="constrained"), count(name) + 2
    before, *given, after = figure.subplots(size, 1)
    assert in_axes(name, given) is figure
    figure.draw_without_rendering()
    assert all(ax.has_data() for ax in given)
    assert is_empty(before)
    assert is_empty(after)
    assert all(ax.get_label() == "<colorbar>" for ax in figure.axes[size:])
    assert not figure.legends
    assert not figure.texts
    assert (figure.get_supxlabel(), figure.get_supylabel(), figure.get_suptitle()) == ("", "", "")


@pytest.mark.parametrize("name", PLOTS)
def test_without_axes_it_makes_a_figure_with_as_many(name):
    figure = call(name)
    assert len([ax for ax in figure.axes if ax.get_label() != "<colorbar>"]) == count(name)


@pytest.mark.parametrize("name", PLOTS)
def test_a_wrong_number_of_axes_is_an_error(name):
    axes = Figure().subplots(1, count(name) + 1)
    if examples()[name].axes == ONE:
        with pytest.raises(BadArgument, match=r"ax=ndarray: this plot has one panel\.\nGive one matplotlib axes"):
            call(name, ax=axes)
    else:
        few, many = count(name), count(name) + 1
        with pytest.raises(
            BadArgument, match=rf"this plot has {few} panels, but {many} \(Axes\) are given\.\nGive {few} "
        ):
            call(name, axes=axes)
        with pytest.raises(BadArgument, match=r"\(str\) are given"):
            call(name, axes=["a"] * count(name))


def test_axes_of_several_figures_are_an_error():
    with pytest.raises(BadArgument, match=r"axes: these belong to several figures\.\nGive axes of one figure"):
        call("gates", axes=[Figure().subplots(), Figure().subplots()])


@pytest.mark.parametrize("name", PLOTS)
def test_it_has_one_argument_for_axes_and_refuses_unknown_ones(name):
    parameters = inspect.signature(getattr(plots, name)).parameters
    given = "ax" if examples()[name].axes == ONE else "axes"
    assert {"ax", "axes"} & set(parameters) == {given}
    assert parameters[given].kind is inspect.Parameter.KEYWORD_ONLY
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        call(name, colour="red")


@pytest.mark.parametrize("name", PLOTS)
def test_axes_may_be_an_array_of_subplots(name):
    figure = Figure()
    grid = figure.subplots(1, count(name), squeeze=False)
    assert in_axes(name, grid.ravel() if examples()[name].axes == ONE else grid) is figure


def test_text_of_vector_formats_is_text():
    svg = io.BytesIO()
    with plots.style():
        call("half_life").savefig(svg, format="svg")
    assert b">Half-life by head</text>" in svg.getvalue()
