"""Figures with a mark for every head: retrieval, reconstruction, the sink; and gates token by token."""

import io

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.colors import to_hex
from numpy.testing import assert_allclose

from qwenlab import plots, stats
from qwenlab.errors import BadArgument, MissingVariable
from tests.planted.maps import made_maps

BLUE, ORANGE, GREY = "#0072b2", "#e69f00", "#8a8a8a"


@pytest.fixture(scope="module")
def recording():
    return made_maps(labels=["code"]).recording


@pytest.fixture(scope="module")
def statistics(recording):
    return stats.reach(recording)


@pytest.fixture(scope="module")
def retrieval():
    """Statistics as stats.retrieval makes them: two DeltaNet layers of three heads, one of attention with two."""
    rng = np.random.default_rng(0)
    dims, bounds = ("layer", "head"), ("layer", "head", "bound")
    held = rng.uniform(0, 1, (5, 3, 3))
    held[:, 1, 2] = np.nan
    names = ("retrieval", "control", "advantage", "picked", "chance")
    variables = {name: (dims, values) for name, values in zip(names, held, strict=True)}
    variables |= {f"{name}_interval": (bounds, np.stack([v - 0.1, v + 0.1], -1)) for name, (_, v) in variables.items()}
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    coords = {"layer": [0, 1, 2], "head": [0, 1, 2], "kind": ("layer", kinds), "bound": ["low", "high"]}
    return xr.Dataset(variables, coords)


def marks(ax, colour):
    """Offsets of the filled marks of a colour, in the order in which they were drawn."""
    found = [each for each in ax.collections if isinstance(each, PathCollection) and len(each.get_facecolor())]
    return [np.array(each.get_offsets()) for each in found if to_hex(each.get_facecolor()[0]) == colour]


def rings(ax):
    found = [each for each in ax.collections if isinstance(each, PathCollection) and not len(each.get_facecolor())]
    return np.concatenate([each.get_offsets()[:, 1] for each in found])


def test_retrieval_and_its_controls(retrieval):
    axes = plots.retrieval(retrieval).axes
    for ax, name, control in zip(axes, ("retrieval", "picked"), ("control", "chance"), strict=True):
        drawn = [*marks(ax, BLUE), *marks(ax, ORANGE)]
        grey = marks(ax, GREY)
        for layer, here, baseline in zip((0, 2, 1), drawn, (grey[0], grey[2], grey[1]), strict=True):
            one = retrieval.sel(layer=layer).dropna("head", subset=["retrieval"])
            one = one.isel(head=np.argsort(one["retrieval"].values))  # in both panels
            assert_allclose(here[:, 1], one[name])
            assert_allclose(baseline[:, 1], one[control])
            assert_allclose(baseline[:, 0], here[:, 0])
            assert_allclose(here[:, 0], layer, atol=0.5)
        ends = [np.sort(s[:, 1]) for c in ax.collections if isinstance(c, LineCollection) for s in c.get_segments()]
        interval = retrieval[f"{name}_interval"].values.reshape(-1, 2)
        assert_allclose(sorted(map(tuple, ends)), sorted(map(tuple, interval[~np.isnan(interval[:, 0])])))
    assert axes[1].get_xlabel() == "layer"


def test_reconstruction_with_and_without_the_removal(statistics):
    ax = plots.reconstruction(statistics).axes[0]
    exact, without = (
        statistics[name].values[~statistics[name].isnull()]
        for name in ("reconstruction_error", "without_removal_error")
    )
    assert_allclose(np.sort(np.concatenate(marks(ax, BLUE))[:, 1]), np.sort(exact))
    assert_allclose(np.sort(rings(ax)), np.sort(without))
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "1", "2", "4", "5", "6"]  # those of DeltaNet
    alone = plots.reconstruction(statistics.drop_vars("without_removal_error")).axes[0]
    assert [text.get_text() for text in alone.get_legend().get_texts()] == ["with key removal"]
    with pytest.raises(MissingVariable, match="No reconstruction_error"):
        plots.reconstruction(statistics.drop_vars("reconstruction_error"))


def test_the_sink_with_the_gate_off_and_on(statistics):
    axes = plots.sink(statistics).axes
    for ax, name in zip(axes, ("first_mass", "output_first", "gated_output_first"), strict=True):
        for layer, here in zip((3, 7), marks(ax, ORANGE), strict=True):
            one = statistics.sel(layer=layer).dropna("head", subset=["first_mass"])
            assert_allclose(here[:, 1], one[name][np.argsort(one["first_mass"].values)])
        assert not marks(ax, BLUE)
        most = statistics[f"{name}_interval"].where(statistics["kind"] == "full_attention").max()
        assert ax.get_ylim()[1] >= most  # nothing is cut off, in any panel
    assert_allclose(np.concatenate(marks(axes[0], GREY))[:, 1], statistics["first_even"].sel(layer=3, head=0))


def test_openness_is_a_row_a_head(recording):
    maps = [stats.attention_map(recording, layer=layer, head=head) for layer in (3, 7) for head in (0, 2)]
    count = maps[0].sizes["query"]
    ax, bar = plots.gate_by_token(maps, tokens=[f"w{place}" for place in range(count)]).axes
    (mesh,) = ax.findobj(QuadMesh)
    assert_allclose(np.array(mesh.get_array()).reshape(4, count), [each["mean_gate"] for each in maps])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["3.0", "3.2", "7.0", "7.2"]
    assert [text.get_text() for text in ax.get_xticklabels()] == [f"w{place}" for place in range(count)]
    assert bar.get_ylabel() == "mean gate value"
    assert plots.gate_by_token(maps).axes[0].get_xlabel() == "position (tokens)"


def test_gates_of_several_kinds_or_texts_are_refused(recording):
    attention, deltanet = (stats.attention_map(recording, layer=layer, head=0) for layer in (3, 0))
    for maps in ([attention, deltanet], [attention, attention.assign_attrs(text=1)], []):
        with pytest.raises(BadArgument, match="draws heads of one kind over one text"):
            plots.gate_by_token(maps)
    with pytest.raises(MissingVariable, match="No mean_gate"):
        plots.gate_by_token([attention.drop_vars("mean_gate")])


@pytest.mark.parametrize("draw", ["retrieval", "reconstruction", "sink"])
def test_they_are_saved_for_print(draw, statistics, retrieval):
    figure = getattr(plots, draw)(retrieval if draw == "retrieval" else statistics)
    for suffix in ("pdf", "svg"):
        figure.savefig(io.BytesIO(), format=suffix)
