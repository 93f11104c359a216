"""Precision of a kernel's products, and the tolerance of ImplicitAttention that follows from it."""

import copy
import sys
from functools import wraps

import pytest
import torch

from qwenlab.errors import KernelMismatch
from qwenlab.probes import ImplicitAttention
from qwenlab.probes.kernel_agreement import IEEE, TF32, product_eps
from qwenlab.probes.session import watch

BFLOAT16 = 2.0**-7
TORCHS = "transformers.models.qwen3_5.modeling_qwen3_5.torch_chunk_gated_delta_rule"
FUSED = "fla.ops.gated_delta_rule.chunk.chunk_gated_delta_rule"


@pytest.fixture
def precision():
    """Sets torch's precision of float32 products for one test."""
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("setting", "cpu", "cuda"), [("highest", IEEE, IEEE), ("high", TF32, TF32), ("medium", BFLOAT16, TF32)]
)
def test_of_torchs_own_rule_it_is_torchs_setting(setting, cpu, cuda, precision):
    precision(setting)
    assert (product_eps(TORCHS, "cpu"), product_eps(TORCHS, "cuda")) == (cpu, cuda)


def test_only_cuda_may_be_set_to_tf32(precision):
    torch.backends.cuda.matmul.allow_tf32 = True
    assert (product_eps(TORCHS, "cpu"), product_eps(TORCHS, "cuda")) == (IEEE, TF32)
    torch.backends.cuda.matmul.allow_tf32 = False
    assert product_eps(TORCHS, "cuda") == IEEE


@pytest.mark.parametrize(
    ("kernel", "device", "eps"),
    [(FUSED, "cuda", TF32), (FUSED, "cpu", TF32), ("hub.rule", "cuda", TF32), ("notebook.my_rule", "cpu", IEEE)],
)
def test_of_other_kernels_it_is_tf32_on_a_gpu(kernel, device, eps):
    """Those of flash-linear-attention run on a CPU in Triton's interpreter, which may emulate a GPU."""
    assert product_eps(kernel, device) == eps


def off_by(factor, modeling, monkeypatch):
    """The output of torch's own rule, off by so much of its norm."""
    rule = modeling.torch_chunk_gated_delta_rule

    @wraps(rule)
    def off(*args, **kwargs):
        out, state = rule(*args, **kwargs)
        return out * (1 + factor), state

    monkeypatch.setattr(modeling, "torch_chunk_gated_delta_rule", off)


@pytest.mark.parametrize(
    ("setting", "passes", "fails", "allowed"),
    [("highest", 5e-5, 8e-4, "0.0001"), ("high", 8e-4, 4e-3, "0.00195"), ("medium", 8e-3, 4e-2, "0.0156")],
)
def test_what_rounding_explains_is_allowed(small, text, monkeypatch, precision, setting, passes, fails, allowed):
    precision(setting)
    modeling, tokens = sys.modules[type(small).__module__], text(70)[None]
    with monkeypatch.context() as patch:
        off_by(passes, modeling, patch)
        with torch.no_grad(), watch(small, ImplicitAttention(every=1)):
            small(tokens)
    off_by(fails, modeling, monkeypatch)
    refused = pytest.raises(KernelMismatch, match=rf"\(rounding explains at most {allowed}\)")
    with refused as raised, torch.no_grad(), watch(small, ImplicitAttention(every=1)):
        small(tokens)
    message = str(raised.value)
    assert "watch with transformers' own kernel, which models on the CPU use, and without the" in message
    for word in ("TRITON_F32_DEFAULT=ieee before triton is imported", 'set_float32_matmul_precision("highest")'):
        assert (word in message) == (setting != "highest")


def test_a_coarser_output_does_not_name_the_products(small, text, monkeypatch, precision):
    """In bfloat16 their precision is not what limits the comparison."""
    precision("high")
    model = copy.deepcopy(small).to(torch.bfloat16)
    off_by(0.5, sys.modules[type(small).__module__], monkeypatch)
    refused = pytest.raises(KernelMismatch, match=r"rounding explains at most 0\.0156")
    with refused as raised, torch.no_grad(), watch(model, ImplicitAttention(every=1)):
        model(text(70)[None])
    assert "TRITON_F32_DEFAULT" not in str(raised.value)
