"""The parts of each family: their names, their interventions, and that they add up."""

from functools import partial

import pytest
import torch

from qwenlab.ablations.units import UNITS, units
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.errors import BadArgument, MissingPart, UnknownLayer
from qwenlab.interventions.session import intervene
from qwenlab.interventions.values import Noise, Zero
from qwenlab.testing.models import tiny_model

DELTANET, ATTENTION = "linear_attention", "full_attention"


def size(module):
    return sum(weight.numel() for weight in module.parameters())


def test_names_and_interventions(moe):
    assert [(each.name, each.intervention, each.layer, each.kind) for each in units(moe)] == [
        ("mixer 0", "Zero('layers.0.mixer')", 0, DELTANET),
        ("mixer 1", "Zero('layers.1.mixer')", 1, DELTANET),
        ("mixer 2", "Zero('layers.2.mixer')", 2, DELTANET),
        ("mixer 3", "Zero('layers.3.mixer')", 3, ATTENTION),
    ]
    assert [(each.name, each.intervention) for each in units(moe, "layer", layers=[2])] == [
        ("layer 2", "Identity([2])")
    ]
    assert [(each.name, each.intervention) for each in units(moe, "mlp", layers=[1])] == [
        ("mlp 1", "Zero('layers.1.mlp')")
    ]
    heads = units(moe, "head", layers=[3])
    assert [each.name for each in heads] == ["head 3.0", "head 3.1", "head 3.2", "head 3.3"]
    assert heads[2].intervention == "Zero('layers.3.mixer.heads', heads=[2])"
    experts = units(moe, "expert")
    assert [each.name for each in experts[:9]] == [*(f"expert 0.{expert}" for expert in range(8)), "expert 1.0"]
    assert experts[8].intervention == "MaskExperts([0], layers=[1])"
    gates = {each.name: each.intervention for each in units(moe, "gate")}
    assert list(gates) == [f"{word} {layer}" for layer in range(3) for word in ("gate", "beta", "decay")] + ["gate 3"]
    assert gates["decay 1"] == "SetGate('layers.1.mixer.decay', to=1.0)"
    assert [(each.name, each.intervention, each.layer) for each in units(moe, "kind")] == [
        ("all linear_attention", "Zero('layers.*.mixer', kind='linear_attention')", -1),
        ("all full_attention", "Zero('layers.*.mixer', kind='full_attention')", 3),
    ]


def test_parameters_add_up(checkpoint):
    decoder = decoder_of(checkpoint.model)
    by = {of: units(checkpoint, of) for of in UNITS if of != "expert"}

    def sums(of):
        found = [0] * len(decoder.layers)
        for each in by[of]:
            found[each.layer] += each.parameters
        return found

    mixers = [size(decoder.mixer(layer)) for layer in range(4)]
    assert sums("layer") == [size(layer) for layer in decoder.layers]
    assert sums("mixer") == sums("head") == mixers
    assert sums("mlp") == [size(decoder.part(layer, "mlp")) for layer in range(4)]
    assert sums("gate") == [0] * 4
    assert [each.parameters for each in by["kind"]] == [sum(mixers[:3]), mixers[3]]
    assert by["kind"][0].parts == ("layers.0.mixer", "layers.1.mixer", "layers.2.mixer")


def test_experts_are_those_of_the_layers_that_have_some(opened):
    decoder = decoder_of(opened("next").model)
    found = units(opened("next"), "expert")
    assert [each.layer for each in found] == [layer for layer in (0, 2, 3) for _ in range(8)]
    for layer in (0, 2, 3):
        counts = [each.parameters for each in found if each.layer == layer]
        assert sum(counts) == size(decoder.part(layer, "experts"))
    mlps = units(opened("next"), "mlp")
    assert found[0].overlaps(mlps[0]) and not found[0].overlaps(mlps[2])


@pytest.mark.parametrize("of", UNITS)
def test_every_unit_can_be_carried_out(checkpoint, of):
    if of == "expert" and not decoder_of(checkpoint.model).layers_with("experts"):
        pytest.skip("a dense family")
    ids = torch.arange(1, 8)[None]
    for ablation in units(checkpoint, of)[:: 5 if of in ("head", "expert") else 1]:
        with torch.no_grad(), intervene(checkpoint.model, *ablation.interventions):
            assert checkpoint.model(ids, use_cache=False).logits.isfinite().all()


def test_another_intervention_than_zero(moe):
    (found,) = units(moe, "mlp", intervention=partial(Noise, seed=3), layers=[2])
    assert found.intervention == "Noise('layers.2.mlp', seed=3)"
    assert (
        units(moe.model, "kind", intervention=Noise)[1].intervention == "Noise('layers.*.mixer', kind='full_attention')"
    )


def test_what_units_refuses(moe, opened):
    with pytest.raises(
        BadArgument, match=r"units\(of='mixers'\): give one of 'layer', 'mixer', .*; did you mean 'mixer'\?"
    ):
        units(moe, "mixers")
    with pytest.raises(
        BadArgument, match=r"units\(of='layer', intervention=\.\.\.\) is always Identity\.\nLeave `intervention` out"
    ):
        units(moe, "layer", intervention=Noise)
    assert units(moe, "layer", intervention=Zero) == units(moe, "layer")
    with pytest.raises(BadArgument, match=r"units\(of='kind', layers=\.\.\.\) always ablates all layers of a kind"):
        units(moe, "kind", layers=[0])
    with pytest.raises(UnknownLayer, match=r"units\(layers=\.\.\.\) names layers \[4, 9\]; this model has 0 to 3"):
        units(moe, layers=[1, 9, 4])
    with pytest.raises(BadArgument, match=r"units\(layers=\.\.\.\): 2 is one number; give a list of them"):
        units(moe, layers=2)
    with pytest.raises(MissingPart, match=r"units\(of='expert'\) finds nothing: this model has no expert\."):
        units(opened("dense"), "expert")
    with pytest.raises(MissingPart, match=r"finds nothing: layers \[1\] of this model has no expert\."):
        units(opened("next"), "expert", layers=[1])


def test_a_model_of_one_kind_has_that_kind_alone():
    model = tiny_model("qwen3_5", layer_types=[DELTANET], hidden_size=32)
    assert [(each.name, each.layer) for each in units(model, "kind")] == [("all linear_attention", 0)]
