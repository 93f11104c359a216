"""Files whose format differs from their config are rejected before they are loaded."""

import json

import pytest
import torch

import qwenlab as ql
from qwenlab.errors import BrokenWeights, UnknownQuantization, UnusedWeightsWarning
from qwenlab.testing.checkpoints import tiny_checkpoint
from tests.checkpoint.changing import change_tensors

KINDS = ["linear_attention", "full_attention"]
MATRIX = "model.language_model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def fp8(tmp_path):
    return tiny_checkpoint(tmp_path, "qwen3_5", layer_types=KINDS, dtype="bfloat16", fp8=True, shards=1)


@pytest.fixture
def plain(tmp_path):
    return tiny_checkpoint(tmp_path, "qwen3_5", layer_types=KINDS, dtype="bfloat16", shards=1)


def change_config(folder, **fields):
    """Set fields of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | fields
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("strict", [False, True])
def test_fp8_of_another_maker(fp8, strict):
    """One `weight_scale` per tensor, and a quant_method that transformers skips; it only logs that."""

    def rename(tensors):
        for name in [name for name in tensors if name.endswith("_scale_inv")]:
            tensors[name.removesuffix("_inv")] = tensors.pop(name).amax()

    change_tensors(fp8, rename)
    change_config(fp8, quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"})
    message = r"quant_method 'modelopt', which transformers does not know and would skip[\s\S]*Open the unquantised"
    with pytest.raises(UnknownQuantization, match=message):
        ql.open(fp8, strict=strict)


def test_a_config_that_lost_its_quantisation(fp8):
    change_config(fp8, quantization_config=None)
    message = (
        r"no quantization_config with a quant_method, but \d+ tensors are those of a quantised model:[\s\S]*F8_E4M3"
    )
    with pytest.raises(BrokenWeights, match=message + r"[\s\S]*Restore the quantization_config"):
        ql.open(fp8)


def test_a_quantisation_without_its_method(fp8):
    """As MLX writes it."""
    change_config(fp8, quantization_config={"group_size": 64, "bits": 4})
    with pytest.raises(BrokenWeights, match="no quantization_config with a quant_method"):
        ql.open(fp8)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e5m2])
def test_codes_in_a_plain_checkpoint(plain, dtype):
    change_tensors(plain, lambda tensors: tensors.update({MATRIX: tensors[MATRIX].float().mul(100).to(dtype)}))
    with pytest.raises(BrokenWeights, match=rf"1 tensors are those of a quantised model:\n  {MATRIX} \("):
        ql.open(plain)


@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv", "qzeros", "g_idx", "weight.absmax"])
def test_scales_in_a_plain_checkpoint(plain, name):
    """An unused tensor only warns; a tensor of a quantised layer is an error."""
    path = MATRIX.removesuffix("weight") + name
    change_tensors(plain, lambda tensors: tensors.update({path: torch.ones(1)}))
    with pytest.raises(BrokenWeights, match=path):
        ql.open(plain)


DAMAGE = {
    "has no weight_scale_inv": lambda tensors: tensors.pop(f"{MATRIX}_scale_inv"),
    "which is not stored in FP8": lambda tensors: tensors.update({MATRIX: tensors[MATRIX].to(torch.bfloat16)}),
    "is stored as I8": lambda tensors: tensors.update({MATRIX: tensors[MATRIX].float().to(torch.int8)}),
    "is not part of block-scaled FP8": lambda tensors: tensors.update(
        {MATRIX.replace("weight", "input_scale"): torch.ones(())}
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_fp8_whose_codes_and_scales_do_not_pair(fp8, message):
    change_tensors(fp8, DAMAGE[message])
    with pytest.raises(
        BrokenWeights, match=rf"do not match the FP8 weights that config.json describes[\s\S]*{message}"
    ):
        ql.open(fp8)


def test_a_quantisation_that_needs_a_package(plain):
    change_config(plain, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    with pytest.raises(UnknownQuantization, match=r"cannot read the weights in .*: [\s\S]*unquantised release"):
        ql.open(plain)


def test_bitsandbytes_is_left_to_transformers(plain):
    """transformers needs the number of bits, which is not part of the quant_method."""
    change_config(plain, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(UnknownQuantization, match=r"cannot read the weights in .*: .*bitsandbytes"):
        ql.open(plain)


@pytest.mark.parametrize("name", ["logit_scale", "model.language_model.layers.1.self_attn.k_scale", "position_ids"])
def test_other_tensors_only_warn(plain, name):
    change_tensors(plain, lambda tensors: tensors.update({name: torch.ones(3, dtype=torch.int64)}))
    with pytest.warns(UnusedWeightsWarning, match=name):
        ql.open(plain)
