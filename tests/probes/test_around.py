"""Statistics do not depend on the model's surroundings: modes, wrappers, devices, kernels."""

import contextlib
import json

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import remove_hook_from_module
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from qwenlab.capture.buffers import CaptureBuffer
from qwenlab.capture.layout import PLAIN
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.fused_kernels import kernel_of
from qwenlab.probes import DeltaNet, defaults
from qwenlab.probes.session import watch
from qwenlab.testing.models import tiny_model
from tests.probes.compare import assert_same
from tests.probes.feeding import in_pieces, one_by_one, recorded, thorough


@pytest.fixture(scope="module")
def own():
    """A model that a test may change, as long as it changes it back."""
    return tiny_model("qwen3_5_moe")


@pytest.fixture(scope="module")
def texts():
    drawn = torch.Generator().manual_seed(4)
    return [torch.randint(1, 280, (length,), generator=drawn) for length in (20, 7)]


@pytest.fixture(scope="module")
def usual(own, texts):
    return recorded(own, in_pieces(texts, (12, 1, 4)))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations(own, texts, usual, implementation):
    own.set_attn_implementation(implementation)
    result = recorded(own, in_pieces(texts, (12, 1, 4)))
    assert own.config._attn_implementation == implementation == result.attrs["attention_implementation"]
    assert_same(result, usual)
    own.set_attn_implementation("sdpa")


def test_an_attention_function_of_the_users_own(own, texts, usual):
    AttentionInterface.register("their_own", lambda *args, **kwargs: sdpa_attention_forward(*args, **kwargs))
    own.set_attn_implementation("their_own")
    # transformers makes no mask for an implementation it does not know: without padding none is needed.
    result = recorded(own, one_by_one(texts))
    assert result.attrs["attention_implementation"] == "their_own"
    own.set_attn_implementation("sdpa")
    assert_same(result, usual)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_experts_implementations(own, texts, usual, implementation):
    own.set_experts_implementation(implementation)
    result = recorded(own, in_pieces(texts, (12, 1, 4)))
    assert result.attrs["experts_implementation"] == implementation
    assert_same(result, usual)
    own.set_experts_implementation("grouped_mm")


@pytest.mark.parametrize("use_cache", [True, False, None])
def test_use_cache_is_left_as_it_is(own, texts, usual, use_cache):
    kinds = []

    def feed(model, seen):
        for tokens in texts:
            kinds.append(type(model(tokens[None], use_cache=use_cache).past_key_values).__name__)

    assert_same(recorded(own, feed), usual)
    assert set(kinds) == {"NoneType" if use_cache is False else "DynamicCache"}


@pytest.mark.parametrize("around", [torch.inference_mode, torch.no_grad, contextlib.nullcontext])
@pytest.mark.parametrize("inside", [False, True])
def test_modes_around_or_inside_the_block(own, texts, usual, around, inside):
    outer, inner = (contextlib.nullcontext, around) if inside else (around, contextlib.nullcontext)
    with (
        outer(),
        watch(own, *thorough(own)) as seen,
        inner(),
    ):
        in_pieces(texts, (12, 1, 4))(own, seen)
    assert_same(seen.recording(), usual)


def test_a_block_that_changes_its_mode(own, texts, usual):
    with watch(own, *thorough(own)) as seen:
        with torch.inference_mode():
            one_by_one(texts[:1])(own, seen)
        one_by_one(texts[1:])(own, seen)
        with torch.inference_mode():
            recording = seen.recording()
    assert_same(recording, usual)


@pytest.mark.parametrize("inside", [False, True])
def test_autocast_changes_no_bit_and_does_not_reach_the_probes(own, texts, inside):
    def autocast(on):
        return torch.autocast("cpu", torch.bfloat16) if on else contextlib.nullcontext()

    with torch.no_grad(), autocast(True):
        bare = [own(tokens[None]).logits for tokens in texts]
    probes = thorough(own)
    with torch.no_grad(), autocast(not inside), watch(own, *probes) as seen, autocast(inside):
        watched = [own(tokens[None]).logits for tokens in texts]
    assert all(torch.equal(one, other) for one, other in zip(bare, watched, strict=True))
    assert bare[0].dtype == torch.bfloat16
    rough(seen.recording(), recorded(own, one_by_one(texts)))
    # Keys have length 1, whatever the precision: the moment's trace is the number of tokens.
    traces = np.trace(seen.recording()["deltanet"]["key_moment"].values, axis1=-2, axis2=-1)
    np.testing.assert_allclose(traces, 27, rtol=1e-5)


def test_bfloat16(own, texts):
    model = tiny_model("qwen3_5_moe").to(torch.bfloat16)
    result = recorded(model, in_pieces(texts, (12, 1, 4)))
    assert result.attrs["dtype"] == "bfloat16"
    rough(result, recorded(own, one_by_one(texts)))


def rough(result, expected):
    """Means that agree as far as bfloat16 can tell."""
    for node, name in (
        ("deltanet", "beta"), ("deltanet", "alpha"), ("deltanet", "error_ratio"), ("deltanet", "state_norm"),
        ("deltanet", "gate"), ("attention", "entropy"), ("attention", "self_mass"), ("routing", "entropy"),
        ("residual", "norm"), ("residual", "ratio"),
    ):  # fmt: skip
        one, other = (float(each[node][f"{name}_sum"].sum()) for each in (result, expected))
        assert one == pytest.approx(other, rel=0.02), f"{node}.{name}"
    assert int(result["routing"]["load"].sum()) == int(expected["routing"]["load"].sum())


class Theirs(nn.Module):
    """Somebody's own module around a model."""

    def __init__(self, model):
        super().__init__()
        self.inner = nn.ModuleDict({"language": model})
        self.probe = nn.Linear(64, 2)

    def forward(self, tokens):
        out = self.inner["language"].model(input_ids=tokens)
        return self.probe(out.last_hidden_state)


def test_a_model_inside_a_module_of_somebodys_own(own, texts, usual):
    theirs = Theirs(own)
    with (
        torch.no_grad(),
        watch(theirs, *thorough(theirs)) as seen,
    ):
        for tokens in texts:
            theirs(tokens[None])
    assert_same(seen.recording(), usual)
    assert seen.recording().attrs["checkpoint"] == "Theirs"


def test_the_inner_stack_alone(own, texts, usual):
    result = recorded(own.model, lambda stack, seen: [stack(tokens[None]) for tokens in texts])
    assert_same(result, usual)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_the_class_with_a_vision_tower(family, texts):
    wrapped, plain = tiny_model(family, wrapped=True), tiny_model(family)
    decoder_of(wrapped).module.load_state_dict(decoder_of(plain).module.state_dict())
    wrapped.lm_head.load_state_dict(plain.lm_head.state_dict())
    fed = recorded(wrapped, lambda model, seen: [model(input_ids=tokens[None]) for tokens in texts])
    assert_same(fed, recorded(plain, one_by_one(texts)))
    generated = recorded(wrapped, lambda model, seen: model.generate(texts[0][None], max_new_tokens=4, do_sample=False))
    assert_same(
        generated,
        recorded(plain, lambda model, seen: model.generate(texts[0][None], max_new_tokens=4, do_sample=False)),
    )


def test_accelerate_places_its_own_hooks(texts, usual):
    """One device is all there is here; the hooks that move inputs and weights are the same for many."""
    model = tiny_model("qwen3_5_moe")
    dispatch_model(model, {"": "cpu"}, force_hooks=True)
    assert_same(recorded(model, in_pieces(texts, (12, 1, 4))), usual)
    remove_hook_from_module(model, recurse=True)
    cpu_offload(model, torch.device("cpu"))
    assert next(model.model.layers[0].parameters()).is_meta
    result = recorded(model, in_pieces(texts, (12, 1, 4)))
    assert_same(result, usual)
    assert result.attrs["checkpoint_hash"].startswith("sampled-sha256:")


def test_layers_on_several_devices():
    """A stand-in for a second device: the stream arrives as another type of tensor than the part yields."""
    buffer = CaptureBuffer(0, "mlp", {"mlp.input": PLAIN, "mlp": PLAIN})
    buffer.captured = {"mlp.input": torch.zeros(1, 2, 3), "mlp": torch.zeros(1, 2, 3, device="meta")}
    read = buffer.read([buffer.collect()], 1, 2)
    assert {name: value.device.type for name, value in read.items()} == {"mlp.input": "meta", "mlp": "meta"}


def test_dropout_and_training_mode(texts):
    model = tiny_model("qwen3_5", attention_dropout=0.5).train()

    def run():
        torch.manual_seed(0)
        return model(texts[0][None]).logits

    bare = run()
    with watch(model, *defaults(model)):
        assert torch.equal(run(), bare)


def test_what_ran_is_in_the_facts(own, texts):
    result = recorded(own, one_by_one(texts), *defaults(own)).attrs
    assert result["family"] == "qwen3_5_moe"
    assert result["kernel_delta_rule"] == f"{type(own).__module__}.torch_chunk_gated_delta_rule"
    assert json.loads(result["layer_types"]) == list(own.config.layer_types)
    assert (result["dtype"], result["device"], result["checkpoint"]) == ("float32", "cpu", "Qwen3_5MoeForCausalLM")
    with watch(own, DeltaNet()):
        assert kernel_of(decoder_of(own)) == result["kernel_delta_rule"]
        own(texts[0][None])


def test_the_hash_tells_weights_and_prompts_apart(own, texts):
    first = recorded(own, one_by_one(texts)).attrs
    other = recorded(own, one_by_one(texts[::-1])).attrs
    assert first["prompts_hash"] != other["prompts_hash"]
    assert first["checkpoint_hash"] == other["checkpoint_hash"]
    with torch.no_grad():
        own.model.layers[2].mlp.gate.weight.add_(1)
    assert recorded(own, one_by_one(texts)).attrs["checkpoint_hash"] != first["checkpoint_hash"]
    with torch.no_grad():
        own.model.layers[2].mlp.gate.weight.sub_(1)
