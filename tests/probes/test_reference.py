"""Every statistic of every probe matches the slow float64 reference, in every family."""

import numpy as np
import pytest
import torch

from qwenlab.interventions import cache_activations
from qwenlab.probes import Attention, DeltaNet, Residual, Routing
from qwenlab.probes.session import watch
from qwenlab.testing import tiny_model
from tests.probes import reference
from tests.probes.by_hand import layers_of
from tests.probes.compare import assert_says
from tests.probes.feeding import in_pieces, recorded
from tests.probes.reference import Text

LENGTHS = (70, 1, 9, 20, 5, 2, 33, 8, 17, 3)  # more than folds, longer and shorter than a chunk of the kernel
OF_PREDICTION = ("update_norm_sum", "error_ratio_sum", "error_tokens", "state_norm_sum")


@pytest.fixture(scope="module")
def texts(model):
    """Ten texts, whose tokens take turns with two labels in places."""
    drawn = torch.Generator().manual_seed(0)
    out = []
    for number, length in enumerate(LENGTHS):
        tokens = torch.randint(1, 280, (length,), generator=drawn)
        label = [number % 2 if position < 20 else (position // 3) % 2 for position in range(length)]
        out.append((tokens, Text(layers_of(model, tokens), number, label)))
    return out


@pytest.fixture(scope="module")
def deltanet(texts):
    return reference.deltanet([text for _, text in texts])


def seen(model, texts, *probes):
    with watch(model, *probes) as seen, torch.no_grad():
        for tokens, text in texts:
            with seen.label([["ab"[label] for label in text.label]]):
                model(input_ids=tokens[None])
    return seen.recording()


def test_every_token_of_one_pass(model, texts, deltanet):
    probes = [DeltaNet(every=1, prediction_heads="all"), Attention(every=1), Residual(every=1)]
    if hasattr(model.config, "num_experts"):
        probes.append(Routing(every=1))
    result, read = seen(model, texts, *probes), [text for _, text in texts]
    assert_says(result["deltanet"], deltanet)
    assert_says(result["attention"], reference.attention(read, 1))
    assert_says(result["residual"], reference.residual(read))
    if "routing" in result:
        assert_says(result["routing"], reference.routing(read))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_deltanet_of_some_heads(model, texts, deltanet, number):
    config = model.config
    dataset = seen(model, texts, DeltaNet(every=1, prediction_heads=number))["deltanet"]
    total, group = config.linear_num_key_heads, config.linear_num_value_heads // config.linear_num_key_heads
    key_heads = min(number, total)
    asked = {key * total // key_heads * group + head for key in range(key_heads) for head in range(group)}
    mask = np.array([head in asked for head in range(total * group)])
    assert_says(dataset, deltanet | {name: deltanet[name] * mask for name in OF_PREDICTION})


@pytest.mark.parametrize("every", [2, 4, 7, 100])
def test_deltanet_of_a_sample(model, texts, every):
    dataset = seen(model, texts, DeltaNet(every=every, prediction_heads="all"))["deltanet"]
    assert_says(dataset, reference.deltanet([text for _, text in texts], every))


@pytest.mark.parametrize("every", [3, 16])
def test_attention_of_a_sample(model, texts, every):
    dataset = seen(model, texts, Attention(every=every))["attention"]
    assert_says(dataset, reference.attention([text for _, text in texts], every))


def test_routing_of_a_sample(model, texts):
    if not hasattr(model.config, "num_experts"):
        pytest.skip("a dense model")
    dataset = seen(model, texts, Routing(every=5))["routing"]
    assert_says(dataset, reference.routing([text for _, text in texts], 5))


def test_residual_of_a_sample(model, texts):
    dataset = seen(model, texts, Residual(every=4))["residual"]
    assert_says(dataset, reference.residual([text for _, text in texts], 4))


def test_probes_say_the_same_together_and_of_few_layers(model, texts, deltanet):
    result = seen(
        model,
        texts,
        DeltaNet(layers=[1], every=1, prediction_heads="all"),
        Attention(layers=[3], every=16),
        Residual(layers=[2, 0], every=4),
    )
    by_layer = {name: 1 if name.endswith("hist") or name == "key_moment" else 2 for name in deltanet}
    assert_says(result["deltanet"], {name: deltanet[name].take([1], axis) for name, axis in by_layer.items()})
    read = [text for _, text in texts]
    assert_says(result["attention"], reference.attention(read, 16))
    assert_says(
        result["residual"], {name: values[:, :, [0, 2]] for name, values in reference.residual(read, 4).items()}
    )


@pytest.mark.parametrize("family", ["qwen3_5", "olmo_hybrid"])
def test_a_single_value_head(family, text):
    """Its gate has an axis of heads too, read in one pass and token by token."""
    kinds = ["linear_attention", "full_attention"]
    model = tiny_model(family, layer_types=kinds, linear_num_key_heads=1, linear_num_value_heads=1)
    tokens = text(12)
    expected = reference.deltanet([Text(layers_of(model, tokens), 0, [0] * 12)])
    for widths in ([12], [1]):
        probe = DeltaNet(every=1, prediction_heads="all")
        assert_says(recorded(model, in_pieces([tokens], widths), probe)["deltanet"], expected)
    with torch.no_grad(), cache_activations(model, "layers.0.mixer.gate") as seen:
        model(tokens[None])
    assert seen["layers.0.mixer.gate"].shape == (1, 12, 1, 16)
