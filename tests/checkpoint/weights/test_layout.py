"""Layouts of the files, for any sizes: separate experts are fused again, and scales apply to their blocks."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

from qwenlab.checkpoint.weights.layout import assembled, expected, misfits
from qwenlab.checkpoint.weights.shards import StoredTensor

SIZES = st.integers(1, 5)


def headers(tensors, dtype="BF16"):
    """The headers of shards with these tensors."""
    return {name: StoredTensor(Path("shard"), dtype, tuple(t.shape), 0, 0) for name, t in tensors.items()}


@st.composite
def fused_experts(draw):
    experts, width, size = draw(SIZES), draw(SIZES), draw(SIZES)
    return {
        "mlp.experts.gate_up_proj": torch.rand(experts, 2 * width, size),
        "mlp.experts.down_proj": torch.rand(experts, size, width),
        "mlp.gate.weight": torch.rand(experts, size),
    }


def separate(tensors):
    gate_up, down = tensors["mlp.experts.gate_up_proj"], tensors["mlp.experts.down_proj"]
    width = gate_up.shape[1] // 2
    parts = {"mlp.gate.weight": tensors["mlp.gate.weight"]}
    for expert in range(len(down)):
        parts[f"mlp.experts.{expert}.gate_proj.weight"] = gate_up[expert, :width]
        parts[f"mlp.experts.{expert}.up_proj.weight"] = gate_up[expert, width:]
        parts[f"mlp.experts.{expert}.down_proj.weight"] = down[expert]
    return parts


def shapes(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@given(fused_experts())
def test_separate_experts_are_expected_and_fused_again(tensors):
    parts = separate(tensors)
    assert expected(shapes(tensors), headers(parts), (128, 128)) == shapes(parts)
    assert misfits(shapes(parts), headers(parts)) == []
    torch.testing.assert_close(assembled(parts, shapes(tensors), (128, 128)), tensors, atol=0, rtol=0)


@given(fused_experts())
def test_fused_experts_stay_as_they_are(tensors):
    assert expected(shapes(tensors), headers(tensors), (128, 128)) == shapes(tensors)
    torch.testing.assert_close(assembled(tensors, shapes(tensors), (128, 128)), tensors, atol=0, rtol=0)


@given(rows=SIZES, columns=SIZES, block=st.tuples(SIZES, SIZES))
def test_each_value_is_multiplied_by_the_scale_of_its_block(rows, columns, block):
    stored = torch.rand(rows, columns)
    scale = torch.rand(-(-rows // block[0]), -(-columns // block[1]))
    files = {"o_proj.weight": stored, "o_proj.weight_scale_inv": scale}
    wanted = {"o_proj.weight": (rows, columns)}
    assert expected(wanted, headers(files), block) == shapes(files)
    by_hand = [[stored[r, c] * scale[r // block[0], c // block[1]] for c in range(columns)] for r in range(rows)]
    torch.testing.assert_close(assembled(files, wanted, block)["o_proj.weight"], torch.tensor(by_hand))


def test_layers_may_have_different_layouts():
    files = {
        "layers.0.mlp.experts.0.down_proj.weight": torch.rand(2, 3),
        "layers.1.mlp.experts.down_proj": torch.rand(1, 2, 3),
    }
    fused = {f"layers.{layer}.mlp.experts.down_proj": (1, 2, 3) for layer in (0, 1)}
    assert expected(fused, headers(files), (128, 128)) == shapes(files)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_fp8_must_have_a_scale(dtype):
    files = headers({"o_proj.weight": torch.rand(256, 130)}, dtype)
    wanted = expected({"o_proj.weight": (256, 130)}, files, (128, 128))
    assert misfits(wanted, files) == ["o_proj.weight_scale_inv [2, 2] is missing"]


def test_misfits_name_the_tensor_and_both_shapes():
    files = headers({"a": torch.rand(2), "b": torch.rand(3)})
    assert misfits({"a": (2,), "b": (4,), "c": (5, 6)}, files) == ["b is [3], should be [4]", "c [5, 6] is missing"]
