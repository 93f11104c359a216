"""Tiny checkpoints: the files are laid out as the published ones."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from qwenlab.checkpoint.anatomy.tensors import tensors
from qwenlab.checkpoint.config import read_config
from qwenlab.checkpoint.weights.shards import read_weights
from qwenlab.errors import BadArgument
from qwenlab.testing.checkpoints import tiny_checkpoint
from qwenlab.testing.models import tiny_model


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_the_published_names_and_shapes(tmp_path, family):
    folder = tiny_checkpoint(tmp_path, family)
    stored = {name: tensor.shape for name, tensor in read_weights(folder).tensors.items()}
    assert stored == {tensor.name: tensor.shape for tensor in tensors(read_config(folder, strict=True))}
    assert len([name for name in stored if name.startswith("mtp.")]) == {"qwen3_5": 15, "qwen3_5_moe": 19}[family]
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == family
    assert config["architectures"][0].endswith("ForConditionalGeneration")
    assert config["text_config"]["mtp_num_hidden_layers"] == 1


@pytest.mark.parametrize(("layout", "first"), [("text", "model.language_model.layers."), ("flat", "model.layers.")])
def test_text_configs(tmp_path, layout, first):
    folder = tiny_checkpoint(tmp_path, "qwen3_5_moe", layout=layout, mtp=None)
    assert AutoConfig.from_pretrained(folder).model_type == "qwen3_5_moe_text"
    names = set(read_weights(folder).tensors)
    assert {name for name in names if ".layers." in name} == {name for name in names if name.startswith(first)}
    assert not any(name.startswith("mtp.") for name in names)


def test_experts_apart(tmp_path):
    stored = load_file(tiny_checkpoint(tmp_path, experts="each", mtp="fused", shards=1) / "model.safetensors")
    fused = tiny_model().model.layers[0].mlp.experts.gate_up_proj
    stem = "model.language_model.layers.0.mlp.experts"
    assert f"{stem}.gate_up_proj" not in stored
    assert torch.equal(stored[f"{stem}.3.gate_proj.weight"], fused[3, :16])
    assert torch.equal(stored[f"{stem}.3.up_proj.weight"], fused[3, 16:])
    assert "mtp.layers.0.mlp.experts.gate_up_proj" in stored


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_shards_and_their_index(tmp_path, shards):
    folder = tiny_checkpoint(tmp_path, "qwen3_5", layers=1, shards=shards)
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    if shards == 1:
        assert files == ["model.safetensors"]
        return
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert len(files) == shards
    assert index["metadata"]["total_size"] == sum(t.nbytes for file in files for t in load_file(folder / file).values())


def test_float32_decay_in_a_bfloat16_checkpoint(tmp_path):
    folder = tiny_checkpoint(tmp_path, "qwen3_5", dtype="bfloat16", float32_decay=True)
    wide = {name for name, stored in read_weights(folder).tensors.items() if stored.dtype == "F32"}
    assert wide and all(name.endswith(("linear_attn.A_log", "linear_attn.norm.weight")) for name in wide)
    assert len(wide) == 6


def test_fp8_matrices_have_their_scales(tmp_path):
    folder = tiny_checkpoint(tmp_path, experts="each", mtp="each", dtype="bfloat16", fp8=True)
    stored = read_weights(folder).tensors
    fp8 = {name for name, tensor in stored.items() if tensor.dtype == "F8_E4M3"}
    assert {f"{name}_scale_inv" for name in fp8} == {name for name in stored if name.endswith("_scale_inv")}
    # per expert 3; per layer the shared expert's 3, and 3 of a DeltaNet or 4 of an attention mixer; the head likewise
    assert len(fp8) == 5 * (8 * 3 + 3) + 3 * 3 + 2 * 4
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["weight_block_size"] == [16, 16]


def test_the_tokenizer_keeps_any_text_and_adds_nothing(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint(tmp_path, "qwen3_5", layers=1))
    assert len(tokenizer) == 272
    text = "The state then reads: naïve 12,345\n\tдa 漢字 🙂  end"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert max(tokenizer(text).input_ids) < 272


@pytest.mark.parametrize(("family", "layout"), [("qwen3_next", "root"), ("qwen3_5", "rooted")])
def test_a_layout_that_the_family_has_not(tmp_path, family, layout):
    with pytest.raises(BadArgument, match=rf"layout='{layout}' does not exist for {family}\.\nUse .*flat \("):
        tiny_checkpoint(tmp_path, family, layout=layout)
