"""Sites: one name per value, the same for both mixers, under any wrapper of the decoder."""

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.families import ATTENTION, DELTANET, KINDS
from qwenlab.checkpoint.sites import find_sites, sites
from qwenlab.errors import AmbiguousModel, BadArgument, NotAHybrid, UnknownSite
from qwenlab.testing.models import tiny_model

MIXER = ["mixer", "mixer.query", "mixer.key", "mixer.value", "mixer.heads", "mixer.gate"]
GATES = ["mixer.beta", "mixer.decay"]
SPARSE = ["router", "experts", "shared_expert"]
REST = ["mlp", "residual"]

NON_PERIODIC = [ATTENTION, DELTANET, DELTANET, ATTENTION, ATTENTION]


class Holder(nn.Module):
    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


@pytest.fixture(scope="module")
def moe():
    return tiny_model("qwen3_5_moe")


@pytest.fixture(scope="module")
def dense():
    return tiny_model("qwen3_5", layer_types=NON_PERIODIC)


def words(model, layer):
    return [site.word for site in sites(model) if site.layer == layer]


def names(found):
    return [site.name for site in found]


# --- the sites of a model ---


def test_the_same_words_for_both_mixers(moe):
    assert words(moe, 0) == [*MIXER, *GATES, *SPARSE, *REST]
    assert words(moe, 3) == [*MIXER, *SPARSE, *REST]


def test_a_dense_family_has_no_router(dense):
    assert words(dense, 0) == [*MIXER, *REST]
    assert words(dense, 1) == [*MIXER, *GATES, *REST]


def test_a_dense_layer_of_a_sparse_family_has_no_router():
    model = tiny_model("qwen3_next", layers=2, mlp_only_layers=[1])
    assert words(model, 0) == [*MIXER, *GATES, *SPARSE, *REST]
    assert words(model, 1) == [*MIXER, *GATES, *REST]


def test_kinds_come_from_layer_types(dense):
    assert [site.kind for site in find_sites(dense, "layers.*.mixer")] == NON_PERIODIC


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe", "qwen3_next"])
def test_every_module_is_there(family):
    model = tiny_model(family)
    for site in sites(model):
        model.get_submodule(site.module)
    gates = [model.get_submodule(site.module).out_features for site in find_sites(model, "layers.*.mixer.gate")]
    config = model.config
    deltanet = config.linear_num_value_heads * config.linear_value_head_dim
    if family == "qwen3_next":  # its projection holds q, k, v and z together
        deltanet += deltanet + 2 * config.linear_num_key_heads * config.linear_key_head_dim
    assert gates == [deltanet] * 3 + [2 * config.num_attention_heads * config.head_dim]


@torch.no_grad()
def test_the_stream_is_the_sum_of_its_contributions(moe):
    """residual[n] = residual[n - 1] + mixer[n] + mlp[n], read at the modules that the sites name."""
    values = {}
    handles = [
        moe.get_submodule(site.module).register_forward_hook(
            lambda _, __, out, name=site.name: values.update({name: out[0] if isinstance(out, tuple) else out})
        )
        for word in ("mixer", "mlp", "residual")
        for site in find_sites(moe, f"layers.*.{word}")
    ]
    moe(torch.arange(10)[None])
    for handle in handles:
        handle.remove()
    for layer in range(1, 4):
        parts = [values[f"layers.{layer - 1}.residual"], values[f"layers.{layer}.mixer"], values[f"layers.{layer}.mlp"]]
        torch.testing.assert_close(sum(parts), values[f"layers.{layer}.residual"])


def test_dims_and_units_of_a_site(moe):
    by_word = {(site.kind, site.word): (site.dims, site.units) for site in sites(moe)}
    token = ("sequence", "position")
    assert by_word[DELTANET, "mixer"] == by_word[ATTENTION, "mixer"] == ((*token, "channel"), "residual")
    assert by_word[DELTANET, "mixer.beta"] == ((*token, "head"), "1")
    assert by_word[DELTANET, "mixer.value"] == ((*token, "head", "channel"), "1")
    assert by_word[ATTENTION, "mixer.value"] == ((*token, "key_head", "channel"), "1")
    assert by_word[ATTENTION, "mixer.query"] == by_word[DELTANET, "mixer.value"]
    assert by_word[DELTANET, "mixer.heads"] == by_word[ATTENTION, "mixer.heads"] == by_word[DELTANET, "mixer.value"]
    assert by_word[DELTANET, "mixer.query"] == by_word[DELTANET, "mixer.key"] == by_word[ATTENTION, "mixer.key"]
    assert by_word[DELTANET, "mixer.query"] == ((*token, "key_head", "channel"), "1")
    assert by_word[ATTENTION, "mixer.gate"] == by_word[DELTANET, "mixer.gate"] == ((*token, "head", "channel"), "logit")
    assert by_word[DELTANET, "router"] == ((*token, "expert"), "logit")


# --- patterns ---


@given(data=st.data())
def test_a_sites_own_name_finds_it_alone(moe, data):
    site = data.draw(st.sampled_from(sites(moe)))
    assert find_sites(moe, site.name) == (site,)
    assert site in find_sites(moe, f"layers.*.{site.word}", kind=site.kind)


@pytest.mark.parametrize(("pattern", "found"), [
    ("layers.*.mixer", ["layers.0.mixer", "layers.1.mixer", "layers.2.mixer", "layers.3.mixer"]),
    ("layers.[02].mlp", ["layers.0.mlp", "layers.2.mlp"]),
    ("layers.3.*", ["layers.3.mixer", *(f"layers.3.{word}" for word in SPARSE + REST)]),
    ("layers.*.mixer.beta", ["layers.0.mixer.beta", "layers.1.mixer.beta", "layers.2.mixer.beta"]),
    ("layers.1.mixer.?e*", [f"layers.1.mixer.{word}" for word in ("key", "heads", "beta", "decay")]),
])  # fmt: skip
def test_a_star_does_not_match_a_dot(moe, pattern, found):
    assert names(find_sites(moe, pattern)) == found


def test_one_kind_alone(moe):
    assert names(find_sites(moe, "layers.*.mixer", kind=ATTENTION)) == ["layers.3.mixer"]


@given(data=st.data())
def test_by_kind_the_sites_fall_into_two_parts(dense, data):
    pattern = data.draw(st.sampled_from(["layers.*.mixer", "layers.*.*", "layers.*.*.gate", "layers.[1-3].residual"]))
    parts = [find_sites(dense, pattern, kind=kind) for kind in KINDS]
    assert sorted(names(parts[0] + parts[1])) == sorted(names(find_sites(dense, pattern)))


# --- wrappers ---


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_the_wrapper_with_a_vision_tower_has_the_same_sites(family):
    plain, wrapped = tiny_model(family, layers=2), tiny_model(family, layers=2, wrapped=True)
    assert names(sites(wrapped)) == names(sites(plain))
    assert decoder_of(wrapped).module is wrapped.get_decoder()
    assert find_sites(wrapped, "layers.1.mlp")[0].module == "model.language_model.layers.1.mlp"


def test_the_decoder_is_found_in_a_module_that_holds_it(moe):
    holder = Holder(inner=Holder(backbone=moe), head=nn.Linear(64, 2))
    assert find_sites(holder, "layers.3.mixer")[0].module == "inner.backbone.model.layers.3.self_attn"
    assert decoder_of(holder).module is moe.get_decoder()


def test_the_decoder_alone(moe):
    assert find_sites(moe.model, "layers.3.mixer")[0].module == "layers.3.self_attn"
    assert find_sites(moe.model, "layers.3.residual")[0].module == "layers.3"
    assert decoder_of(moe.model).mixer(3) is moe.model.layers[3].self_attn
    assert decoder_of(moe.model).mixer(0) is moe.model.layers[0].linear_attn


def test_two_decoders_are_one_too_many(moe, dense):
    with pytest.raises(AmbiguousModel) as caught:
        decoder_of(Holder(student=dense, teacher=moe))
    assert str(caught.value) == (
        "Holder contains 2 stacks of decoder layers: student.model, teacher.model.\nPass one of them."
    )


def test_the_same_decoder_twice_is_one(moe):
    assert decoder_of(Holder(policy=moe, reference=moe)).path == "policy.model"


def test_a_model_without_such_a_decoder():
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9, bos_token_id=0, eos_token_id=0))
    with pytest.raises(
        NotAHybrid, match=r"GPT2LMHeadModel contains no stack of decoder layers .*\nPass a hybrid model"
    ):
        sites(gpt2)


# --- errors ---


def unknown(model, pattern, kind=None):
    with pytest.raises(UnknownSite) as caught:
        find_sites(model, pattern, kind)
    return str(caught.value)


def test_a_place_that_only_the_other_mixer_has(moe):
    assert unknown(moe, "layers.3.mixer.decay") == (
        "No site matches 'layers.3.mixer.decay'. The sites of layers.3 are:\n"
        "  full_attention (3): mixer, mixer.query, mixer.key, mixer.value, mixer.heads, mixer.gate, router, experts, "
        "shared_expert, mlp, residual\n"
        "mixer.decay exists at layers 0, 1, 2: write layers.N.mixer.decay."
    )


def test_a_kind_that_has_no_such_place(moe):
    message = unknown(moe, "layers.*.mixer.beta", kind=ATTENTION)
    assert message.startswith("No site matches 'layers.*.mixer.beta' among the full_attention layers. The sites")
    assert "linear_attention (" not in message


@pytest.mark.parametrize(("written", "meant"), [
    ("mixr", "mixer"),
    ("routers", "router"),
    ("mixer.betas", "mixer.beta"),
    ("expert", "experts"),
])  # fmt: skip
def test_a_misspelt_word(moe, written, meant):
    assert f"Did you mean layers.1.{meant}" in unknown(moe, f"layers.1.{written}")


@pytest.mark.parametrize(
    "pattern", ["", "layers", "layers.*", "attention", "model.layers.3.mixer", "layers.*.mixer.*.*"]
)
def test_a_pattern_of_another_form_lists_all_words(moe, pattern):
    message = unknown(moe, pattern)
    assert "\n  linear_attention (0, 1, 2): mixer," in message
    assert "\n  full_attention (3): mixer," in message
    assert message.endswith("Write layers.*. and one of these names.")


def test_a_word_alone(moe):
    assert unknown(moe, "residual").endswith("residual exists at layers 0, 1, 2, 3: write layers.N.residual.")


def test_a_layer_that_does_not_exist(moe):
    assert unknown(moe, "layers.4.mixer") == (
        "No site matches 'layers.4.mixer': the layers are 0, 1, 2, 3.\nUse one of these, or '*' for all."
    )
    assert "the linear_attention layers are 0, 1, 2.\n" in unknown(moe, "layers.3.mixer", kind=DELTANET)


def test_a_kind_that_does_not_exist(moe):
    with pytest.raises(
        BadArgument,
        match=r"find_sites\(kind='attention'\): give one of 'linear_attention', 'full_attention'; did you mean",
    ):
        find_sites(moe, "layers.*.mixer", kind="attention")
