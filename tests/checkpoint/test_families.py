import importlib
import inspect
from pathlib import Path

import pytest

from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.checkpoint.families import FAMILIES, KINDS, Family, family_of
from qwenlab.errors import NotAHybrid, UnsupportedFamily
from qwenlab.testing.models import tiny_model


def build(config: dict, family: Family):
    """The text stack of a config, without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {name: value for name, value in config.items() if name != "model_type"}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family.text_type, **fields))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_model_types_lead_to_their_family(family):
    assert family_of(family.text_type) is family
    assert family_of({"model_type": family.text_type}) is family
    if family.root_type:
        assert family_of({"model_type": family.root_type, "text_config": {}}) is family


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_names_what_transformers_builds(name, tiny_dense, tiny_moe, tiny_next, tiny_olmo):
    configs = {"qwen3_5": tiny_dense, "qwen3_5_moe": tiny_moe, "qwen3_next": tiny_next, "olmo_hybrid": tiny_olmo}
    config = configs[name]
    family = FAMILIES[name]
    model = build(config, family)

    assert family_of(model) is family_of(model.config) is family
    assert importlib.import_module(family.modeling) is importlib.import_module(type(model).__module__)
    for rule in (family.deltanet.chunk_rule, family.deltanet.recurrent_rule):
        mixer_globals = inspect.unwrap(model.model.layers[0].linear_attn.forward).__globals__
        assert callable(mixer_globals[rule])
        assert mixer_globals is vars(importlib.import_module(family.modeling))

    for layer, kind in zip(model.model.layers, model.config.layer_types, strict=True):
        layer.get_submodule(family.kind(kind).path)
        assert not hasattr(layer, family.kind(next(other for other in KINDS if other != kind)).path)
        for norm in family.kind(kind).norms:
            layer.get_submodule(norm)
    for projection, _ in family.deltanet.inputs:
        model.model.layers[0].linear_attn.get_submodule(projection)
    if family.sparse:
        for path in (family.router, family.experts, family.shared_expert, family.shared_expert_gate):
            model.model.layers[1].get_submodule(path)
    model.get_submodule(family.head)


@pytest.mark.parametrize("name", ["kimi_linear", "qwen4_exp", "qwen4_exp_text"])
def test_hybrids_outside_the_table_are_rejected_with_the_reason(name):
    with pytest.raises(UnsupportedFamily, match=r"that qwenlab does not support: .+") as refusal:
        family_of({"model_type": name, "text_config": {"layer_types": ["linear_attention"]}})
    assert all(family in str(refusal.value) for family in FAMILIES)
    assert str(refusal.value).endswith("What another one takes: docs/extending.md#another-family.")
    assert "\n## Another family\n" in (Path(__file__).parents[2] / "docs" / "extending.md").read_text()


def test_an_unknown_hybrid_is_rejected():
    with pytest.raises(UnsupportedFamily, match="zebra has linear_attention layers, but qwenlab does not support it"):
        family_of({"model_type": "zebra", "layer_types": ["linear_attention", "full_attention"]})


@pytest.mark.parametrize("config", ["llama", {"model_type": "llama"}, {"model_type": "llama", "layer_types": 3}, {}])
def test_other_models_are_not_hybrids(config):
    with pytest.raises(NotAHybrid, match=r"is not a hybrid model[\s\S]*qwen3_5, qwen3_5_moe, qwen3_next"):
        family_of(config)


def test_a_model_that_is_built_otherwise_than_the_family_is_rejected():
    small = tiny_model("qwen3_5", layers=1)
    small.config.attn_output_gate = False
    with pytest.raises(UnsupportedFamily, match="attn_output_gate=False; qwenlab knows the family with True only"):
        decoder_of(small)
