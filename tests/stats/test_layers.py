"""The table of layers: its columns are the statistics, and only those that were watched."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from qwenlab import stats
from qwenlab.errors import NotARecording, NothingMeasured
from qwenlab.testing.recordings import made_recording


def test_each_column_is_the_statistic_it_names():
    recording = made_recording()
    table = stats.layer_table(recording)
    half_life = stats.half_life(recording)["half_life"].sel(quantile=0.5).median("head")
    assert_allclose(table["half_life"].sel(layer=half_life["layer"]), half_life)
    assert table["half_life"].sel(layer=[3, 7]).isnull().all()
    distance = stats.attention_distance(recording)["distance"].mean("head")
    assert_allclose(table["attention_distance"].sel(layer=[3, 7]), distance)
    assert_allclose(table["mean_gate"], stats.gates(recording)["mean_gate"].mean("head"))
    assert_allclose(table["switch_rate"], stats.routing(recording)["switch_rate"])
    assert_allclose(table["load_entropy"], stats.expert_load(recording)["normalised_entropy"])
    assert_allclose(table["mlp_ratio"], stats.residual(recording)["ratio"].sel(part="mlp"))
    assert_allclose(table["time_share"].sum(), 1)


def test_the_table_is_one_row_a_layer_in_the_order_of_the_trunk():
    frame = stats.layer_table(made_recording()).to_dataframe()
    assert frame.index.tolist() == list(range(8))
    assert frame["kind"].tolist() == (["linear_attention"] * 3 + ["full_attention"]) * 2
    assert list(frame)[1:4] == ["time_share", "half_life", "attention_distance"]


@pytest.mark.parametrize(
    ("probe", "columns"),
    [
        ("timing", {"time_share"}),
        ("deltanet", {"half_life", "beta", "mean_gate"}),
        ("attention", {"attention_distance", "mean_gate"}),
        ("routing", {"router_entropy", "load_entropy", "switch_rate"}),
        ("residual", {"mixer_ratio", "mlp_ratio"}),
    ],
)
def test_columns_are_those_of_the_probes_that_watched(probe, columns):
    assert set(stats.layer_table(made_recording(probes=[probe]))) == columns


def test_probes_of_different_layers_are_joined():
    recording = made_recording(probes=["deltanet", "attention"])
    assert stats.layer_table(recording)["layer"].values.tolist() == list(range(8))
    assert np.isfinite(stats.layer_table(recording)["mean_gate"]).all()


def test_nothing_by_layer_is_refused():
    with pytest.raises(NothingMeasured, match="it has memory"):
        stats.layer_table(made_recording(probes=["memory"]))


def test_a_dataset_is_not_enough():
    with pytest.raises(NotARecording, match="give a Recording, not Dataset"):
        stats.layer_table(made_recording()["routing"])
