"""Plain models on the CPU are watched and edited where fused kernels are installed; recordings name what ran."""

import pytest
import torch
from accelerate import cpu_offload

from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.families import FAMILIES
from qwenlab.checkpoint.fused_kernels import kernel_of
from qwenlab.interventions import Zero
from qwenlab.interventions.session import intervene
from qwenlab.probes import DeltaNet, ImplicitAttention, defaults
from qwenlab.probes.session import watch
from qwenlab.testing.models import tiny_model
from tests.checkpoint import with_kernels

FAMILY = FAMILIES["qwen3_5_moe"]
REFUSED = pytest.raises(RuntimeError, match="cannot be accessed from Triton")
FUSED, PLAIN = "fla.ops.gated_delta_rule.chunk_gated_delta_rule", f"{FAMILY.modeling}.{FAMILY.deltanet.chunk_rule}"


@pytest.fixture
def plain_logits(small, text):
    with torch.no_grad(), watch(small, DeltaNet()):
        return small(text(70)[None]).logits


@pytest.fixture
def modeling(plain_logits, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return with_kernels.bind(FAMILY, monkeypatch)


@torch.no_grad()
def test_watched(small, text, modeling, plain_logits):
    tokens, before = text(70)[None], dict(vars(modeling))
    with REFUSED:
        small(tokens)
    with watch(small, *defaults(small), ImplicitAttention(every=1)) as seen:
        assert torch.equal(small(tokens).logits, plain_logits)
        with watch(small, DeltaNet()) as inside:
            small(tokens)
        assert torch.equal(small(tokens).logits, plain_logits)
    for recording in (seen.recording(), inside.recording()):
        assert recording.attrs["kernel_delta_rule"] == PLAIN
    assert vars(modeling) == before
    with REFUSED:
        small(tokens)


@torch.no_grad()
def test_edited(small, text, modeling, plain_logits):
    tokens = text(70)[None]
    with intervene(small, Zero("layers.1.mixer")), watch(small, DeltaNet()):
        assert not torch.equal(small(tokens).logits, plain_logits)
    with REFUSED:
        small(tokens)


def test_a_training_step(text, modeling):
    """Also a backward pass that begins after the block."""
    model, tokens = tiny_model("qwen3_5_moe", layers=4), text(40)[None]
    with watch(model, DeltaNet()):
        loss = model(tokens, labels=tokens).loss
    loss.backward()
    assert all(bool(each.grad.isfinite().all()) for each in model.parameters() if each.grad is not None)
    assert model.model.layers[0].linear_attn.A_log.grad is not None


def test_the_kernel_of_each_device_is_named(modeling):
    model = tiny_model("qwen3_5_moe")
    assert kernel_of(decoder_of(model)) == PLAIN
    model.model.layers[2].to("meta")
    assert kernel_of(decoder_of(model)) == f"{FUSED}, {PLAIN}"
    assert kernel_of(decoder_of(model.to("meta"))) == FUSED
    assert kernel_of(decoder_of(tiny_model("qwen3_5_moe", layer_types=["full_attention"]))) == "none"


def test_the_kernel_of_offloaded_weights_is_that_of_the_device_they_are_brought_to(modeling, text):
    model = cpu_offload(tiny_model("qwen3_5_moe"), execution_device=torch.device("cpu"))
    assert model.model.layers[0].linear_attn.A_log.device.type == "meta"
    with torch.no_grad(), watch(model, DeltaNet()) as seen:
        model(text(9)[None])
    assert seen.recording().attrs["kernel_delta_rule"] == PLAIN
