"""Fake fused kernels, bound by transformers' own code; like the real ones they reject tensors on the CPU."""

import importlib
import sys
from types import ModuleType, SimpleNamespace

from transformers.integrations.hub_kernels import use_kernel_func_from_hub_with_fallback

from qwenlab.checkpoint.mixers.gated_deltanet import CONVOLUTIONS


# transformers drops what a kernel's signature does not name, so these name what those of flash-linear-attention do.
def chunk_gated_delta_rule(
    q,
    k,
    v,
    g,
    beta,
    scale=None,
    initial_state=None,
    output_final_state=False,
    use_qk_l2norm_in_kernel=False,
    cu_seqlens=None,
    **kwargs,
):
    return _on_a_gpu(q), "fused"


def fused_recurrent_gated_delta_rule(
    q,
    k,
    v,
    g=None,
    gk=None,
    gv=None,
    beta=None,
    scale=None,
    initial_state=None,
    output_final_state=False,
    use_qk_l2norm_in_kernel=False,
    cu_seqlens=None,
    **kwargs,
):
    return _on_a_gpu(q), "fused"


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None, activation=None):
    return _on_a_gpu(x)


def causal_conv1d_update(x, conv_state, weight, bias=None, activation=None):
    return _on_a_gpu(x)


def _on_a_gpu(tensor):
    if tensor.device.type == "cpu":
        raise RuntimeError("Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)")
    return tensor


RULES = (chunk_gated_delta_rule, fused_recurrent_gated_delta_rule)
for kernel in RULES:
    kernel.__module__ = "fla.ops.gated_delta_rule"
for kernel in (causal_conv1d_fn, causal_conv1d_update):
    kernel.__module__ = "causal_conv1d.causal_conv1d_interface"


def bind(family, monkeypatch):
    """Patch the family's modeling file as if both packages were installed when it was imported, and return it."""
    modeling = importlib.import_module(family.modeling)
    fla, convolution = ModuleType("fla"), ModuleType("causal_conv1d")
    fla.ops = SimpleNamespace(gated_delta_rule=SimpleNamespace(**{rule.__name__: rule for rule in RULES}))
    convolution.causal_conv1d_fn, convolution.causal_conv1d_update = causal_conv1d_fn, causal_conv1d_update
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "fla", fla)
        patch.setitem(sys.modules, "causal_conv1d", convolution)
        names = {
            family.deltanet.chunk_rule: (RULES[0].__name__, "fla"),
            family.deltanet.recurrent_rule: (RULES[1].__name__, "fla"),
        }
        names |= {name: (name, "causal_conv1d") for name in CONVOLUTIONS}
        bound = {
            name: use_kernel_func_from_hub_with_fallback(*asked)(getattr(modeling, name).__wrapped__)
            for name, asked in names.items()
        }
    for name, function in bound.items():
        monkeypatch.setattr(modeling, name, function)
    return modeling
