"""The MTP head: its results, compared with a slow version and with transformers; and its loading."""

import itertools

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.modeling_layers import MtpModel

from qwenlab.checkpoint.config import read_config
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.checkpoint.weights.mtp_weights import load_mtp
from qwenlab.checkpoint.weights.shards import read_weights
from qwenlab.errors import BrokenMtpHead
from qwenlab.testing.checkpoints import FP8_BLOCK, tiny_checkpoint
from qwenlab.testing.models import tiny_head, tiny_model
from tests.checkpoint.changing import change_tensors
from tests.golden.mtp_head import mtp_head as slow_mtp_head

FAMILIES = ("qwen3_5", "qwen3_5_moe", "qwen3_next")
LENGTH = 12


@pytest.fixture(scope="module", params=FAMILIES)
def head(request):
    return tiny_head(tiny_model(request.param, layer_types=["linear_attention", "full_attention"]))


@pytest.fixture
def pairs(head):
    """Tokens x[1:] and the target model's hidden states h[:-1] of two sequences."""
    tokens = torch.randint(0, 270, (2, LENGTH + 1), generator=torch.Generator().manual_seed(3))
    return tokens[:, 1:], target_hidden(head.target_model, tokens)[:, :-1]


def target_hidden(target, tokens, **inputs):
    with torch.no_grad():
        return target(tokens, output_hidden_states=True, **inputs).hidden_states[-1]


def slow(head, tokens, hidden, first=0):
    """The slow version over each sequence of a batch."""
    embedding = head.target_model.get_input_embeddings().weight.detach().double().numpy()
    weights, positions = head.state_dict(), range(first, first + tokens.shape[1])
    rows = zip(tokens.tolist(), hidden.double().numpy(), strict=True)
    return np.stack([slow_mtp_head(weights, head.config, embedding, t, h, positions) for t, h in rows])


# --- results ---


@torch.no_grad()
def test_agrees_with_the_slow_version(head, pairs):
    tokens, hidden = pairs
    np.testing.assert_allclose(head(tokens, hidden), slow(head, tokens, hidden), atol=2e-5)


@torch.no_grad()
def test_a_chained_draft_agrees_with_the_slow_version(head, pairs):
    tokens, hidden = pairs
    second = head(tokens[:, 1:], head(tokens, hidden)[:, :-1])
    first = torch.from_numpy(slow(head, tokens, hidden))
    np.testing.assert_allclose(second, slow(head, tokens[:, 1:], first[:, :-1]), atol=5e-5)


@torch.no_grad()
def test_only_differences_of_positions_matter(head, pairs):
    tokens, hidden = pairs
    later = torch.arange(700, 700 + LENGTH).expand(2, -1)
    torch.testing.assert_close(head(tokens, hidden, position_ids=later), head(tokens, hidden), atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("cuts", [(1,), (5,), (1, 2, 3, 11)])
def test_a_cache_changes_nothing(head, pairs, cuts):
    tokens, hidden = pairs
    cache = DynamicCache(config=head.config)
    spans = itertools.pairwise((0, *cuts, LENGTH))
    pieces = [head(tokens[:, a:b], hidden[:, a:b], past_key_values=cache) for a, b in spans]
    torch.testing.assert_close(torch.cat(pieces, dim=1), head(tokens, hidden), atol=1e-5, rtol=0)
    assert cache.get_seq_length() == LENGTH


@torch.no_grad()
def test_left_padding_changes_nothing(head, pairs):
    tokens, hidden = pairs
    pad = 4
    padded_tokens = torch.cat([torch.zeros(1, pad, dtype=torch.long), tokens[:1, : LENGTH - pad]], dim=1)
    padded_hidden = torch.cat([torch.randn(1, pad, hidden.shape[-1]), hidden[:1, : LENGTH - pad]], dim=1)
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :pad] = 0
    y = head(torch.cat([padded_tokens, tokens[1:]]), torch.cat([padded_hidden, hidden[1:]]), attention_mask=mask)
    alone = head(tokens[:1, : LENGTH - pad], hidden[:1, : LENGTH - pad])
    torch.testing.assert_close(y[0, pad:], alone[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(y[1], head(tokens[1:], hidden[1:])[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_logits_are_those_of_the_target_models_lm_head(head, pairs):
    y = head(*pairs)
    assert torch.equal(head.logits(y), head.target_model.lm_head(y))


def test_owns_only_the_mtp_tensors(head):
    of_target = {id(parameter) for parameter in head.target_model.parameters()}
    assert not of_target & {id(parameter) for parameter in head.parameters()}


@torch.no_grad()
@pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="does not know the published names")
@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_agrees_with_the_mtp_model_of_transformers(family, tmp_path):
    folder = tiny_checkpoint(tmp_path, family, layer_types=["linear_attention", "full_attention"])
    target = AutoModelForCausalLM.from_pretrained(folder)
    target.config.num_mtp_layers, target.config.mtp_layer_types = 1, ["full_attention"]  # not read from Qwen's fields
    theirs = MtpModel.from_pretrained(target)
    ours = load_mtp(target, read_weights(folder), read_config(folder))

    tokens = torch.randint(0, 270, (1, LENGTH + 1), generator=torch.Generator().manual_seed(5))
    hidden = target_hidden(target, tokens)
    positions = torch.arange(1, LENGTH + 1)[None]
    sectioned = positions[None].expand(3, -1, -1)
    y = theirs.layers[0](
        target.get_input_embeddings()(tokens[:, 1:]),
        hidden[:, :-1],
        position_embeddings=target.get_decoder().rotary_emb(hidden, sectioned),
        attention_mask=torch.full((LENGTH, LENGTH), -torch.inf).triu(1)[None, None],
        position_ids=positions,
        past_key_values=None,
    )
    torch.testing.assert_close(ours(tokens[:, 1:], hidden[:, :-1]), y, atol=1e-5, rtol=0)


# --- loading ---


def load(folder):
    target = AutoModelForCausalLM.from_pretrained(folder)
    return load_mtp(target, read_weights(folder), read_config(folder))


def broken(folder):
    with pytest.raises(BrokenMtpHead) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert "does not match the target model" in str(caught.value)
    assert "mtp=None" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["mtp.", "model.mtp."])
@pytest.mark.parametrize(("family", "experts", "mtp"), [
    ("qwen3_5", "fused", "fused"),
    ("qwen3_5_moe", "fused", "fused"),
    ("qwen3_5_moe", "fused", "each"),
    ("qwen3_5_moe", "each", "fused"),
    ("qwen3_5_moe", "each", "each"),
])  # fmt: skip
def test_every_published_layout_loads_bit_for_bit(tmp_path, family, experts, mtp, prefix):
    folder = tiny_checkpoint(tmp_path, family, experts=experts, mtp=mtp, mtp_prefix=prefix, seed=7)
    expected = tiny_head(tiny_model(family, seed=7), seed=8).state_dict()
    loaded = load(folder)
    assert isinstance(loaded, MtpHead)
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), expected, atol=0, rtol=0)


def test_it_takes_the_dtype_of_the_lm_head(tmp_path):
    loaded = load(tiny_checkpoint(tmp_path, dtype="bfloat16", float32_decay=True))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_fp8_is_multiplied_by_its_scales(tmp_path):
    folder = tiny_checkpoint(tmp_path, experts="each", mtp="each", dtype="bfloat16", fp8=True, shards=1)
    stored = load_file(folder / "model.safetensors")
    loaded = load(folder).state_dict()

    def by_hand(name):
        matrix, scale = stored[f"mtp.{name}"].float(), stored[f"mtp.{name}_scale_inv"].float()
        rows, columns = matrix.shape
        for row, column in itertools.product(range(rows), range(columns)):
            matrix[row, column] *= scale[row // FP8_BLOCK, column // FP8_BLOCK]
        return matrix.bfloat16()

    assert torch.equal(loaded["layers.0.self_attn.k_proj.weight"], by_hand("layers.0.self_attn.k_proj.weight"))
    up = by_hand("layers.0.mlp.experts.5.up_proj.weight")
    assert torch.equal(loaded["layers.0.mlp.experts.gate_up_proj"][5, len(up) :], up)
    assert torch.equal(loaded["fc.weight"], stored["mtp.fc.weight"])


def test_no_tensors_no_head(tmp_path):
    assert load(tiny_checkpoint(tmp_path, mtp=None)) is None


def test_a_missing_tensor_is_named_with_its_shape(tmp_path):
    folder = tiny_checkpoint(tmp_path, "qwen3_5", shards=1)
    change_tensors(folder, lambda tensors: tensors.pop("mtp.fc.weight"))
    assert "mtp.fc.weight [64, 128] is missing" in broken(folder)


def test_a_missing_expert_is_named(tmp_path):
    folder = tiny_checkpoint(tmp_path, mtp="each", shards=1)
    change_tensors(folder, lambda tensors: tensors.pop("mtp.layers.0.mlp.experts.5.up_proj.weight"))
    assert "mtp.layers.0.mlp.experts.5.up_proj.weight [16, 64] is missing" in broken(folder)


def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path):
    folder = tiny_checkpoint(tmp_path, "qwen3_5", shards=1)
    change_tensors(folder, lambda tensors: tensors.update({"mtp.fc.weight": torch.zeros(64, 64)}))
    assert "mtp.fc.weight is [64, 64], should be [64, 128]" in broken(folder)


def test_a_tensor_outside_the_head_is_named(tmp_path):
    folder = tiny_checkpoint(tmp_path, "qwen3_5", shards=1)
    change_tensors(folder, lambda tensors: tensors.update({"mtp.layers.1.input_layernorm.weight": torch.zeros(64)}))
    assert "mtp.layers.1.input_layernorm.weight is not part of the head" in broken(folder)


def test_fp8_without_its_scale_is_named(tmp_path):
    folder = tiny_checkpoint(tmp_path, "qwen3_5", dtype="bfloat16", fp8=True, shards=1)
    scale = "mtp.layers.0.self_attn.o_proj.weight_scale_inv"
    change_tensors(folder, lambda tensors: tensors.pop(scale))
    assert f"{scale} [4, 8] is missing" in broken(folder)


def test_a_long_list_is_cut(tmp_path):
    folder = tiny_checkpoint(tmp_path, mtp="each", shards=1)
    lost = ("mtp.layers.0.mlp.experts.3.", "mtp.layers.0.self_attn.")
    change_tensors(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(lost)])
    assert "and 1 more" in broken(folder)
