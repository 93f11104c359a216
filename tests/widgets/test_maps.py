"""What the view of the maps draws is the map of what was chosen."""

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.patches import Rectangle

from qwenlab import stats
from qwenlab.errors import ProbeNotRecorded
from qwenlab.record import Recording
from qwenlab.widgets import explore_maps
from tests.planted.maps import made_maps

ROUGH = "$x^ <img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def recording():
    return made_maps().recording


@pytest.fixture(scope="module")
def length(recording):
    return stats.attention_map(recording, layer=0, head=0).sizes["query"]


def drawn(explorer):
    (mesh,) = explorer.figure.axes[0].findobj(QuadMesh)
    return mesh.get_array().filled(np.nan)


@pytest.mark.parametrize(("layer", "head", "kind"), [(2, 3, "DeltaNet"), (7, 1, "attention")])
def test_the_map_and_the_numbers_are_those_of_the_head(recording, layer, head, kind):
    explorer = explore_maps(recording)
    explorer["layer"].value, explorer["head"].value = layer, head
    wanted = stats.attention_map(recording, layer=layer, head=head)["weight"].values
    np.testing.assert_array_equal(drawn(explorer), wanted)
    one = stats.reach(recording).sel(layer=layer, head=head)
    assert explorer.caption.startswith(f"text 0 · layer {layer} · {kind} · head {head}. Over all rows measured: ")
    assert f"entropy of the mass {float(one['entropy']):.3g} nats [" in explorer.caption
    assert ("share of negative weight" in explorer.caption) == (kind == "DeltaNet")


def test_heads_are_those_of_the_layer():
    explorer = explore_maps(made_maps(heads=4, attention_heads=2).recording)
    explorer["head"].value = 3
    explorer["layer"].value = 3
    assert explorer["head"].options == (0, 1)
    assert explorer.caption.startswith("text 0 · layer 3 · attention · head 0")


def test_tokens_and_frames(recording, length):
    names = [f"w{place}" for place in range(length)]
    explorer = explore_maps(recording, tokens={0: names}, marks={0: [(4, 1)], 1: [(2, 1)]})
    assert explorer["text"].options == (("0 · w0w1w2w3w4w5w6w7w8w9w10…", 0),)
    ax = explorer.figure.axes[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == names
    assert [patch.get_xy() for patch in ax.patches if isinstance(patch, Rectangle)] == [(1, 4)]


def test_tokens_are_text_and_nothing_else(recording, length):
    explorer = explore_maps(recording, tokens={0: [ROUGH] * length})
    explorer.figure.savefig("/dev/null", format="png")  # a `$` would start a formula
    assert explorer["text"].options[0][0].startswith("0 · $x^ <img")


def test_without_names_a_text_is_its_number(recording):
    assert explore_maps(recording)["text"].options == (("0", 0),)


def test_maps_without_statistics_have_a_title_alone(recording):
    nodes = {name: recording[name].assign(tokens=0 * recording[name]["tokens"]) for name in recording}
    assert explore_maps(Recording(nodes, {})).caption == "text 0 · layer 0 · DeltaNet · head 0"


def test_a_recording_without_maps(recording):
    with pytest.raises(ProbeNotRecorded, match="No map was stored"):
        explore_maps(Recording({name: recording[name].drop_dims("row") for name in recording}, {}))
