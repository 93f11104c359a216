"""Interventions on olmo_hybrid, however a text is fed: the cases of this folder that other tests run on Qwen3.5."""

import pytest
import torch

from qwenlab.interventions import (
    FreezeState,
    Identity,
    Mean,
    NoConv,
    Noise,
    NoKeyRemoval,
    NoSink,
    Patch,
    Resample,
    ResetState,
    Scale,
    SetGate,
    StateDtype,
    Window,
    Zero,
)
from qwenlab.testing.models import tiny_model
from tests.interventions import fed
from tests.interventions.feeding import logits, taken

EACH = [
    *(Zero("layers.3.mixer"), Scale("layers.3.mlp", by=0.5), Identity([3])),
    *(SetGate("layers.*.mixer.beta", scale=1.7), SetGate("layers.*.mixer.gate", to=0.5), Window(4), NoSink(heads=[1])),
    *(FreezeState(4), ResetState(3), NoKeyRemoval(), NoConv(), Scale("layers.3.mixer.value", by=2)),
]


@pytest.fixture(scope="module", params=[False, True], ids=["without positions", "with positions"])
def olmo(request):
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}} if request.param else {}
    return tiny_model("olmo_hybrid", linear_value_head_dim=24, **rope)


@pytest.fixture
def texts(text):
    return [text(length, seed) for seed, length in enumerate(fed.LENGTHS)]


@pytest.mark.parametrize("each", EACH, ids=str)
def test_however_a_text_is_fed(olmo, texts, each):
    fed.assert_same_however_fed(olmo, [each], texts)
    fed.assert_nothing_left(olmo, [each], texts[0])
    fed.assert_gradient(olmo, [each], texts[0])


@pytest.mark.parametrize("kind", [Mean, Resample, Patch, Noise])
def test_values_of_another_text_in_pieces(olmo, texts, text, kind):
    """One text: what is drawn depends on its number in reading order."""
    cache = taken(olmo, text(13, 9)[None], "layers.3.mixer", "layers.3.mlp", "layers.0.mixer.key")
    for name in cache.sites:
        each = kind(name) if kind is Noise else kind(name, cache=cache)
        whole = fed.alone(olmo, [each], texts[0])
        fed.close(fed.in_pieces(olmo, [each], texts[0], [4, 1]), whole)
        assert not torch.allclose(whole, logits(olmo, texts[0][None])[0], atol=1e-3)


def test_states_in_low_precision(olmo, texts):
    """The first piece reads no rounded state, and the later ones do."""
    plain = logits(olmo, texts[0][None])[0]
    rounded = fed.in_pieces(olmo, [StateDtype("int8")], texts[0], [6, 1])
    fed.close(rounded[:6], plain[:6])
    assert 1e-4 < (plain - rounded)[6:].abs().max() < 1
