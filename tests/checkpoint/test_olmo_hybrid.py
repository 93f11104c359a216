"""olmo_hybrid, from its files on; tests/tiny_models.py holds its layers to the references."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import qwenlab as ql
from qwenlab.checkpoint.anatomy.anatomy import anatomy
from qwenlab.checkpoint.anatomy.tensors import tensors
from qwenlab.checkpoint.caches import cached_by
from qwenlab.checkpoint.config import read_config
from qwenlab.checkpoint.random_weights.byte_tokenizer import save_tokenizer
from qwenlab.checkpoint.sites import sites
from qwenlab.errors import (
    BadConfig,
    BrokenWeights,
    CannotIntervene,
    MissingPart,
    QwenlabError,
    UnknownConfigField,
    UnsupportedFamily,
)
from qwenlab.interventions import ForceExperts, ShuffleRouter
from qwenlab.probes import Attention, DeltaNet, Routing, SoftmaxAttention
from qwenlab.testing.checkpoints import tiny_checkpoint
from qwenlab.testing.models import tiny_head, tiny_model

SIZES = dict(linear_value_head_dim=24, linear_num_key_heads=2, linear_num_value_heads=4)


@pytest.fixture(scope="module")
def olmo():
    return tiny_model("olmo_hybrid", **SIZES)


@pytest.fixture(scope="module")
def saved(olmo, tmp_path_factory):
    """What transformers saves: norms under the names of the hub, and three convolutions of equal size."""
    folder = tmp_path_factory.mktemp("saved")
    olmo.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def published(saved, tmp_path):
    """The layout of the hub: each convolution has the channels of its own projection."""
    stored = load_file(saved / "model.safetensors")
    for layer in range(3):
        names = [f"model.layers.{layer}.linear_attn.{letter}_conv1d.weight" for letter in "qkv"]
        joined = torch.cat([stored[name] for name in names])
        for name, part in zip(names, joined.split([32, 32, 96]), strict=True):
            stored[name] = part.clone()
    norm = stored.pop("model.layers.3.feedforward_layer_norm.weight", None)
    if norm is not None:
        stored["model.layers.3.post_attention_layernorm.weight"] = norm
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    save_tokenizer(tmp_path)
    return tmp_path


@torch.no_grad()
def logits(model):
    return model(torch.arange(1, 30)[None]).logits


def assert_opens(folder, olmo):
    checkpoint = ql.open(folder, strict=True)
    assert torch.equal(logits(checkpoint.model), logits(olmo))
    assert checkpoint.mtp is None
    assert checkpoint.anatomy.total == sum(parameter.numel() for parameter in olmo.parameters())


def test_what_transformers_saved_opens(saved, olmo):
    assert {name.split(".")[-2] for name in load_file(saved / "model.safetensors")} >= {"q_conv1d", "k_conv1d"}
    assert_opens(saved, olmo)


def test_the_layout_of_the_hub_opens(published, olmo):
    assert_opens(published, olmo)


def test_the_names_of_the_model_open(tmp_path, olmo):
    assert_opens(tiny_checkpoint(tmp_path, "olmo_hybrid", layout="flat", mtp=None, **SIZES), olmo)


def test_a_convolution_of_another_size_is_named(published):
    file = published / "model.safetensors"
    stored = load_file(file)
    stored["model.layers.1.linear_attn.k_conv1d.weight"] = torch.zeros(31, 1, 4)
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(BrokenWeights, match=r"1.linear_attn.k_conv1d.weight is \[31, 1, 4\], should be \[32, 1, 4"):
        ql.open(published)


@pytest.mark.parametrize("bias", [False, True])
def test_the_anatomy_lists_the_models_tensors(bias):
    model = tiny_model("olmo_hybrid", attention_bias=bias, num_key_value_heads=1, **SIZES)
    ours = {tensor.name: tensor.shape for tensor in tensors(read_config(model.config, strict=True))}
    assert ours == {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def test_the_published_config_has_seven_billion_parameters():
    raw = json.loads(type(ql.testing.tiny_model("olmo_hybrid").config)().to_json_string(use_diff=False))
    assert anatomy(raw).total == pytest.approx(7.4e9, rel=0.02)


def test_bytes_of_a_cache_are_those_predicted(olmo):
    held = cached_by(olmo)
    with torch.no_grad():
        olmo(torch.ones(1, 21, dtype=torch.long), use_cache=True, **held)
    (cache,) = held.values()
    known = anatomy(olmo.config)
    by_name = dict.fromkeys(("keys", "values", "recurrent_states", "conv_states"), 0)
    for layer in cache.layers:
        for name in by_name:
            value = getattr(layer, name, None)
            parts = value.values() if isinstance(value, dict) else [] if value is None else [value]
            by_name[name] += sum(part.nbytes for part in parts)
    assert by_name["keys"] + by_name["values"] == known.kv_bytes(21)
    assert by_name["recurrent_states"] == known.recurrent_bytes()
    assert by_name["conv_states"] == known.convolution_bytes()


class TestConfig:
    def test_a_field_that_only_qwen_has_is_unknown(self, olmo):
        with pytest.raises(UnknownConfigField, match="does not know for olmo_hybrid: full_attention_interval"):
            read_config(olmo.config.to_dict() | {"full_attention_interval": 4}, strict=True)
        with pytest.raises(UnknownConfigField, match="does not know for qwen3_5: linear_allow_neg_eigval"):
            read_config(tiny_model("qwen3_5").config.to_dict() | {"linear_allow_neg_eigval": True}, strict=True)

    def test_the_layer_types_are_required(self, olmo):
        with pytest.raises(BadConfig, match="layer_types of x is None, but num_hidden_layers is 4"):
            read_config(olmo.config.to_dict() | {"layer_types": None}, name="x")

    def test_it_has_no_mtp_head(self, olmo):
        with pytest.warns(), pytest.raises(BadConfig, match="is 1, but olmo_hybrid has no MTP head"):
            read_config(olmo.config.to_dict() | {"mtp_num_hidden_layers": 1})
        with pytest.raises(UnsupportedFamily, match="olmo_hybrid has no MTP head"):
            tiny_head(olmo)

    def test_without_a_head_nothing_is_drafted(self, saved):
        with pytest.raises(QwenlabError, match="MTP head"):
            ql.speculative.generate(ql.open(saved), "ab", depth=2)


def test_sites(olmo):
    words = {layer: [site.word for site in sites(olmo) if site.layer == layer] for layer in (0, 3)}
    heads = ["mixer", "mixer.query", "mixer.key", "mixer.value", "mixer.heads"]
    assert words[0] == [*heads, "mixer.gate", "mixer.beta", "mixer.decay", "mlp", "residual"]
    assert words[3] == [*heads, "mlp", "residual"]
    modules = {site.name: site.module for site in sites(olmo)}
    assert modules["layers.0.mixer.gate"] == "model.layers.0.linear_attn.g_proj"
    assert modules["layers.0.mixer"] == "model.layers.0.linear_attn"
    assert modules["layers.3.mixer"] == "model.layers.3.post_attention_layernorm"
    assert modules["layers.3.mlp"] == "model.layers.3.post_feedforward_layernorm"


def test_zeroed_parts_leave_the_stream_as_it_was(olmo):
    """Also where a norm follows the mixer: what the layer adds is zero."""
    ids = torch.arange(1, 12)[None]
    names = [f"layers.{layer}.{part}" for layer in (0, 3) for part in ("mixer", "mlp")]
    with (
        torch.no_grad(),
        ql.intervene(olmo, *(ql.interventions.Zero(name) for name in names)),
        ql.interventions.cache_activations(olmo, "layers.*.residual") as seen,
    ):
        olmo(ids)
    embedded = olmo.get_input_embeddings()(ids)
    assert torch.equal(seen["layers.0.residual"], embedded)
    assert torch.equal(seen["layers.3.residual"], seen["layers.2.residual"])


@pytest.mark.parametrize("each", [ForceExperts([0]), ShuffleRouter()], ids=str)
def test_nothing_is_routed(olmo, each):
    with pytest.raises(CannotIntervene, match="has routed experts"), ql.intervene(olmo, each):
        pass


def test_no_routing_probe(olmo):
    with pytest.raises(MissingPart), ql.watch(olmo, Routing()):
        pass
    assert not any(isinstance(probe, Routing) for probe in ql.probes.thorough(olmo))


@pytest.mark.parametrize("negative", [False, True])
def test_statistics_and_figures_follow_the_bound_of_beta(negative):
    model = tiny_model("olmo_hybrid", linear_allow_neg_eigval=negative, **SIZES)
    probes = (*ql.probes.thorough(model), SoftmaxAttention(every=1, queries=[5]), ql.probes.ImplicitAttention(every=1))
    with ql.watch(model, *probes) as seen, torch.no_grad():
        model(torch.arange(1, 90)[None])
    recording = seen.recording()
    top = 1 + negative
    np.testing.assert_allclose(recording["deltanet"]["beta_bin"], np.arange(128) * top / 128)
    gates = ql.stats.gates(recording)
    assert gates["layer"].values.tolist() == [0, 1, 2]
    assert (gates["beta_quantile"].max() > 1) == negative
    assert ql.plots.gates(gates).axes[1].get_ylim() == (0, top)
    table = ql.stats.layer_table(recording)
    assert table["mean_gate"].isnull().values.tolist() == [False] * 3 + [True]
    assert "mean_gate" not in recording["softmax_attention"] and "gate_hist" not in recording["attention"]
    reach = ql.stats.reach(recording)
    assert "gated_output_first" not in reach
    ql.plots.reach(reach)
    for layer in (0, 3):
        explorer = ql.widgets.explore_layers(recording)
        explorer.controls.children[0].value = layer


def test_a_gate_is_not_a_site_of_its_attention(olmo):
    for probe in (Attention(every=1), SoftmaxAttention(every=1), DeltaNet(every=1)):
        with ql.watch(olmo, probe) as seen, torch.no_grad():
            olmo(torch.arange(1, 9)[None])
        assert seen.recording()


def test_ablations(olmo):
    of = {unit: ql.ablations.units(olmo, unit) for unit in ("layer", "mixer", "mlp", "head", "gate", "kind")}
    assert len(of["gate"]) == 9  # decay, beta and gate of three DeltaNet layers
    assert [each.parameters for each in of["mixer"]] == [
        sum(p.numel() for p in (layer.self_attn if hasattr(layer, "self_attn") else layer.linear_attn).parameters())
        for layer in olmo.model.layers
    ]
    with pytest.raises(MissingPart, match="has no expert"):
        ql.ablations.units(olmo, "expert")
    plain = logits(olmo)
    for each in (ablation for several in of.values() for ablation in several):
        with ql.intervene(olmo, *each.interventions):
            assert not torch.equal(logits(olmo), plain), each.name
