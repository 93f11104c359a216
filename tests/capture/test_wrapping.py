"""Wrapped modules: observers get the final inputs and outputs, after other hooks; copies are not wrapped."""

import copy

import pytest
import torch

from qwenlab.probes import Residual
from qwenlab.probes.session import watch
from qwenlab.testing.models import tiny_model
from tests.probes.compare import assert_same
from tests.probes.feeding import one_by_one, recorded


@pytest.fixture
def own():
    return tiny_model("qwen3_5", layer_types=["linear_attention", "full_attention"])


def norms(seen):
    return seen.recording()["residual"]["norm_sum"].sum(("label", "fold")).values


@pytest.mark.parametrize("later", [False, True])
def test_an_edit_by_somebodys_hook_is_seen_whenever_it_was_placed(own, text, later):
    """The stream before the second layer is ten times as long, and its MLP adds nothing."""

    def place():
        own.model.layers[1].register_forward_pre_hook(lambda module, args: (10 * args[0], *args[1:]))
        own.model.layers[1].mlp.register_forward_hook(lambda module, args, out: torch.zeros_like(out))

    bare = recorded(own, one_by_one([text(9)]), Residual(every=1))["residual"].sum(("label", "fold"))
    if not later:
        place()
    with torch.no_grad(), watch(own, Residual(every=1)) as seen:
        if later:
            place()
        own(text(9)[None])
    result = seen.recording()["residual"].sum(("label", "fold"))
    stream = result["stream_norm_sum"].sel(layer=1, part="mixer") / bare["stream_norm_sum"].sel(layer=1, part="mixer")
    assert float(stream) == pytest.approx(10, rel=1e-5)
    assert float(result["norm_sum"].sel(layer=1, part="mlp")) == 0


def test_a_copy_made_meanwhile_is_not_wrapped(own, text):
    """Averages of weights are made by copying the model in the middle of a training loop."""
    with torch.no_grad(), watch(own, Residual(every=1)) as seen:
        twin = copy.deepcopy(own)
        own(text(9)[None])
        before = norms(seen)
        for parameter in twin.parameters():
            parameter.zero_()
        assert not twin(text(9)[None]).logits.any()  # it computes with its own weights
        assert (norms(seen) == before).all()
    for name, module in twin.named_modules():
        for method in ("forward", "_call_impl"):
            bound = vars(module).get(method)
            assert bound is None or bound.__self__ is module, name
    plain = recorded(own, one_by_one([text(9)]), Residual(every=1))
    assert_same(seen.recording(), plain)
