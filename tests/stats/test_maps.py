"""One head's map, as it was kept."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from qwenlab import stats
from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.errors import NothingMeasured, ProbeNotRecorded
from qwenlab.record import Recording
from tests.planted.maps import NODES, made_maps


@pytest.fixture(scope="module")
def case():
    return made_maps()


@pytest.mark.parametrize(("kind", "place", "layer"), [(DELTANET, 3, 4), (ATTENTION, 1, 7)])
def test_it_is_the_rows_of_that_head(case, kind, place, layer):
    result = stats.attention_map(case.recording, layer=layer, head=2)
    rows = case.texts.sequence == 0
    length = int(rows.sum())
    weight = case.rows[kind].weight[rows][:, place, 2, :length]
    assert_allclose(result["weight"], np.where(np.tri(length) > 0, weight, np.nan), rtol=1e-6)
    assert_allclose(result["mean_gate"], case.rows[kind].openness[rows][:, place, 2], rtol=1e-6)
    assert result["weight"].dims == ("query", "key")
    assert (result.attrs["kind"], result.attrs["layer"], result.attrs["head"], result.attrs["block"]) == (
        kind,
        layer,
        2,
        1,
    )
    assert stats.attention_map(case.recording[NODES[kind]], layer=layer, head=2)["weight"].equals(result["weight"])


def test_stored_rows_need_no_measured_rows(case):
    """Of a short text the sample may hold no token; its map was kept all the same."""
    nodes = {name: case.recording[name].assign(tokens=0 * case.recording[name]["tokens"]) for name in case.recording}
    kept = stats.attention_map(Recording(nodes, {}), layer=3, head=0)
    assert kept["weight"].equals(stats.attention_map(case.recording, layer=3, head=0)["weight"])
    with pytest.raises(NothingMeasured, match="measured no token"):
        stats.attention_map(
            Recording({name: node.isel(row=slice(0)) for name, node in nodes.items()}, {}), layer=3, head=0
        )


def test_a_recording_without_maps(case):
    bare = {name: case.recording[name].drop_dims("row") for name in case.recording}
    with pytest.raises(
        ProbeNotRecorded, match=r"No map was stored.*\nWatch with qwenlab\.probes\.ImplicitAttention\(queries='all'"
    ):
        stats.attention_map(Recording(bare, {}), layer=0, head=0)
