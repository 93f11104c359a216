"""The cache argument is found under every name that a version of transformers uses."""

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import Cache, DynamicCache

from qwenlab.checkpoint.caches import cache_argument, cached_by, first_cache
from qwenlab.errors import UnsupportedTransformers
from qwenlab.probes import DeltaNet
from qwenlab.probes.session import watch
from qwenlab.testing.models import tiny_model

LAYERS = ["linear_attention", "full_attention"]
BY_VERSION = "cache" if Version(transformers.__version__) >= Version("5.24") else "past_key_values"


def renamed(input_ids, memory: Cache | None = None, use_cache: bool = False): ...
def optional(input_ids, memory: "Cache | None" = None): ...
def bare(input_ids, cache: Cache): ...
def without_annotation(input_ids, past_key_values=None): ...
def neither(input_ids, use_cache: bool | None = None, cached: Any = None): ...
def both(input_ids, cache: Cache, past: DynamicCache): ...


@pytest.mark.parametrize(
    ("function", "name"),
    [(renamed, "memory"), (optional, "memory"), (bare, "cache"), (without_annotation, "past_key_values")],
)
def test_the_argument_is_known_by_its_type_else_by_its_name(function, name):
    assert cache_argument(function) == name


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe", "qwen3_next"])
def test_the_cache_argument_of_every_family(family):
    model = tiny_model(family, layer_types=LAYERS)
    for module in (model, model.model, model.model.layers[0], model.model.layers[1]):
        assert cache_argument(type(module).forward) == BY_VERSION


@pytest.mark.parametrize(
    ("function", "problem"), [(neither, "has no cache argument"), (both, r"has 2 cache arguments \(cache, past\)")]
)
def test_an_unclear_signature_is_rejected(function, problem):
    message = rf"{function.__name__} of transformers {transformers.__version__} {problem}: qwenlab cannot follow"
    with pytest.raises(UnsupportedTransformers, match=message + r"[\s\S]*pip install 'transformers>=5.17,<5.25'"):
        cache_argument(function)


def test_a_decoder_without_a_cache_argument_cannot_be_watched(monkeypatch):
    model = tiny_model("qwen3_5", layer_types=LAYERS)
    monkeypatch.setattr(type(model.model), "forward", neither)
    with pytest.raises(UnsupportedTransformers, match="has no cache argument"):
        watch(model, DeltaNet())


def test_a_cache_for_a_model_is_filled_by_its_calls():
    model = tiny_model("qwen3_5", layer_types=LAYERS)
    cached = cached_by(model)
    model(torch.tensor([[1, 2, 3]]), use_cache=True, **cached)
    model(torch.tensor([[4]]), use_cache=True, **cached)
    assert first_cache(cached.values()).get_seq_length() == 4
    assert first_cache([None, 3, torch.zeros(2)]) is None


def test_decode_steps_are_of_one_sequence_under_any_name():
    """The cache has the argument name of the installed version."""
    model = tiny_model("qwen3_5", layer_types=LAYERS)
    ids = torch.randint(1, 200, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), watch(model, DeltaNet(prediction_heads="all", every=1)) as seen:
        cached = cached_by(model)
        model(ids[:, :32], use_cache=True, **cached)
        for step in range(32, 40):
            model(ids[:, step : step + 1], use_cache=True, **cached)
    with torch.no_grad(), watch(model, DeltaNet(prediction_heads="all", every=1)) as whole:
        model(ids)
    found, wanted = seen.recording(), whole.recording()
    assert found.attrs["sequences"] == 1
    for name in ("state_norm_sum", "tokens"):
        torch.testing.assert_close(
            torch.tensor(found["deltanet"][name].values),
            torch.tensor(wanted["deltanet"][name].values),
            rtol=1e-4,
            atol=1e-4,
        )
