"""What the view of the layers draws is what the statistics say of what was chosen."""

import numpy as np
import pytest
from matplotlib.patches import Rectangle, StepPatch

from qwenlab.errors import ProbeNotRecorded
from qwenlab.stats import attention_distance, gates, half_life
from qwenlab.testing.recordings import made_recording
from qwenlab.widgets import explore_layers

ROUGH = "$x^ <img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def recording():
    return made_recording(labels=("code", ROUGH), sequences=8)


@pytest.fixture
def explorer(recording):
    return explore_layers(recording)


def filled(axes) -> np.ndarray:
    """The values of the one histogram that is filled: that of the head chosen."""
    (patch,) = [patch for patch in axes.patches if isinstance(patch, StepPatch) and patch.get_fill()]
    return patch.get_data().values


def test_the_layers_are_offered_with_their_kind(explorer):
    assert explorer["layer"].options[2:4] == (("2 · DeltaNet", 2), ("3 · attention", 3))


def test_deltanet(explorer, recording):
    explorer["layer"].value, explorer["head"].value, explorer["label"].value = 2, 3, "code"
    here = {"label": "code", "layer": 2, "head": 3}
    lives, written, opened = map(filled, explorer.figure.axes)
    opening = gates(recording, by_label=True).sel(here)
    np.testing.assert_array_equal(lives, half_life(recording, by_label=True)["half_life_share"].sel(here))
    np.testing.assert_allclose(written, opening["beta_share"].coarsen(beta_bin=4).sum())
    np.testing.assert_allclose(opened, opening["mean_gate_share"].coarsen(gate_bin=4).sum())
    number = float(half_life(recording, by_label=True)["half_life_mean_log"].sel(here))
    assert f"half-life of the mean log decay {number:.3g} tokens [" in explorer.caption
    assert explorer.caption.startswith("layer 2 · DeltaNet · head 3 · code: ")


def test_attention(explorer, recording):
    explorer["layer"].value = 3
    all_texts = {"layer": 3, "head": 0}
    reach, targets, opened = explorer.figure.axes
    statistic = attention_distance(recording).sel(all_texts)
    values = filled(reach)
    np.testing.assert_array_equal(values, statistic["distance_share"][: len(values)])
    assert float(statistic["distance_share"][len(values) :].sum()) == 0
    bars = [patch.get_width() for patch in targets.patches if isinstance(patch, Rectangle)]
    np.testing.assert_allclose(bars, [statistic[name] for name in ("first_mass", "previous_mass", "self_mass")])
    opening = gates(recording)["mean_gate_share"].sel(all_texts)
    np.testing.assert_allclose(filled(opened), opening.coarsen(gate_bin=4).sum())


def test_a_layer_of_the_other_kind_offers_its_own_heads():
    explorer = explore_layers(made_recording(heads=6, attention_heads=2, sequences=4))
    explorer["head"].value = 5
    explorer["layer"].value = 3
    assert explorer["head"].options == (0, 1)
    assert explorer.caption.startswith("layer 3 · attention · head 0 · all texts")


def test_labels_are_text_and_nothing_else(explorer):
    explorer["label"].value = ROUGH
    assert ROUGH in explorer.caption
    explorer.figure.savefig("/dev/null", format="png")  # a `$` would start a formula


def test_one_label_is_not_offered_beside_all_texts():
    explorer = explore_layers(made_recording(labels=("all",), sequences=4))
    assert explorer["label"].options == ("all texts",)


@pytest.mark.parametrize(("probe", "layers"), [("deltanet", 6), ("attention", 2)])
def test_one_kind_alone(probe, layers):
    explorer = explore_layers(made_recording(probes=(probe,), sequences=4))
    assert len(explorer["layer"].options) == layers


def test_a_recording_of_neither_kind_is_an_error():
    with pytest.raises(ProbeNotRecorded, match=r"neither a deltanet nor an attention node\.\nWatch with DeltaNet\(\)"):
        explore_layers(made_recording(probes=("routing",)))
