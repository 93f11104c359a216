"""Gradients of a model under interventions, and activation checkpointing, which would make them wrong."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint as checkpointed

from qwenlab.errors import CannotIntervene
from qwenlab.interventions import Identity, Mean, Noise, Patch, Resample, Scale, Zero, cache_activations, intervene
from qwenlab.testing.models import tiny_model
from tests.interventions import fed
from tests.interventions.feeding import logits, taken


@pytest.fixture
def ids(text):
    return torch.stack([text(9), text(9, 1)])


MADE = {
    "zero": lambda values: Zero("layers.0.mixer.heads", heads=[0]),
    "scale": lambda values: Scale("layers.0.mixer.decay", by=0.5),
    "mean": lambda values: Mean("layers.0.mixer", cache=values, positions=[2, 3, 4]),
    "resample": lambda values: Resample("layers.0.mixer", cache=values, positions=[2, 3, 4]),
    "noise": lambda values: Noise("layers.0.mixer"),  # of the value's norm, which has a gradient
    "identity": lambda values: Identity([0]),
    "patch": lambda values: Patch("layers.0.mixer", cache=values, positions=[2, 3, 4]),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_gradients_are_the_slopes_of_the_changed_loss(small, text, make):
    fed.assert_gradient(small, [make(taken(small, text(13, 9)[None], "layers.0.mixer"))], text(13))


def test_what_is_put_in_has_no_gradient(text):
    """It is a constant: nothing is learnt from the text that it was taken of."""
    model = tiny_model("qwen3_5", layer_types=["linear_attention", "full_attention"], hidden_size=32).train()
    with intervene(model, Zero("layers.1.mlp", positions=[0])):
        values = taken_while_learning(model, text(9)[None])
    assert not values["layers.0.mixer"].requires_grad
    with intervene(model, Patch("layers.0.mixer", cache=values)):
        found = gradients(model, text(9, 1)[None])
    assert "model.layers.0.linear_attn.out_proj.weight" not in found
    assert found["model.layers.0.mlp.down_proj.weight"].any()


def taken_while_learning(model, ids):
    with cache_activations(model, "layers.0.mixer") as values:
        model(ids)
    return values


def gradients(model, ids):
    model.zero_grad()
    model(ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_reach_through_an_intervention(text, ids):
    """Those of a half are half: scaling what a mixer adds is scaling the weights that make it."""
    model = tiny_model("qwen3_5_moe", layer_types=["linear_attention", "full_attention"], hidden_size=32).train()
    with intervene(model, Scale("layers.0.mixer", by=0.5)):
        found = gradients(model, ids)
    weight = model.model.layers[0].linear_attn.out_proj.weight
    with torch.no_grad():
        weight.mul_(0.5)
    expected = gradients(model, ids)
    expected["model.layers.0.linear_attn.out_proj.weight"] *= 0.5
    assert found.keys() == expected.keys() and len(found) > 20
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_what_was_zeroed_learns_nothing_and_what_is_before_it_does(text, ids):
    model = tiny_model("qwen3_5_moe", layer_types=["linear_attention", "full_attention"], hidden_size=32).train()
    with intervene(model, Zero("layers.1.mixer"), Zero("layers.1.mlp", positions=[0])):
        found = gradients(model, ids)
    assert "model.layers.1.self_attn.o_proj.weight" not in found
    assert found["model.layers.0.linear_attn.out_proj.weight"].any() and found["model.embed_tokens.weight"].any()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_refused(ids, reentrant):
    model = tiny_model("qwen3_5", layer_types=["linear_attention", "full_attention"], hidden_size=32).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    with pytest.raises(CannotIntervene) as caught, intervene(model, Zero("layers.0.mixer")):
        gradients(model, ids)
    assert str(caught.value) == (
        "Gradient checkpointing runs the layers again after the forward pass, where interventions do not know which "
        "tokens they read.\n"
        "Turn it off for this block: model.gradient_checkpointing_disable()."
    )
    model.eval()  # transformers leaves it out then
    with intervene(model, Zero("layers.0.mixer")):
        logits(model, ids)


@pytest.mark.parametrize("site", ["layers.0.mixer", "layers.0.mixer.beta", "layers.1.mixer.query"])
def test_checkpointing_of_the_users_own_is_refused_in_the_backward_pass(ids, site):
    """The layer would run again without the intervention, and its gradients would be wrong."""
    model = tiny_model("qwen3_5", layer_types=["linear_attention", "full_attention"], hidden_size=32).train()
    for layer in model.model.layers:
        plain = layer.forward
        layer.forward = lambda *args, plain=plain, **kwargs: checkpointed(plain, *args, use_reentrant=False, **kwargs)
    with pytest.raises(CannotIntervene) as caught, intervene(model, Zero(site)):
        gradients(model, ids)
    assert str(caught.value) == (
        "A layer runs again in the backward pass, where interventions do not know which tokens it reads.\n"
        "Turn off activation checkpointing for this block."
    )
