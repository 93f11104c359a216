"""Sites that did not fire raise an error that names them."""

from types import MethodType

import pytest
import torch

from qwenlab.errors import NoForwardPass, SiteNotReached
from qwenlab.probes import Attention, DeltaNet, Residual, Routing
from qwenlab.probes.session import watch
from qwenlab.testing.models import tiny_model
from tests.probes.compare import assert_same
from tests.probes.feeding import in_pieces, one_by_one, recorded, thorough


def test_no_forward_pass(small):
    message = (
        "watch: this Qwen3_5MoeTextModel ran no forward pass inside the `with` block.\n"
        "Inside the block, call the same model object that you gave to watch, or one that contains it."
    )
    with pytest.raises(NoForwardPass) as caught, watch(small, DeltaNet()):
        pass
    assert str(caught.value) == message
    with pytest.raises(NoForwardPass) as caught:
        watch(small, DeltaNet()).recording()
    assert str(caught.value) == message


def test_an_error_in_the_block_is_not_covered_by_ours(small):
    with pytest.raises(ZeroDivisionError), watch(small, DeltaNet()):
        raise ZeroDivisionError


def test_a_skipped_layer_is_named(text):
    model = tiny_model("qwen3_5_moe")
    model.model.layers[1].forward = lambda hidden, **kwargs: hidden
    with pytest.raises(SiteNotReached) as caught, watch(model, DeltaNet(), Routing(), Residual(layers=[0])):
        model(text(7)[None])
    assert str(caught.value) == (
        "8 watched sites did not fire for every token that the model read:\n"
        "  layers.1.mixer.gate: 0 of 7 tokens\n"
        "  layers.1.mixer.decay: 0 of 7 tokens\n"
        "  layers.1.experts: 0 of 7 tokens\n"
        "  layers.1.router: 0 of 7 tokens\n"
        "  layers.1.router, its choice: 0 of 7 tokens\n"
        "  layers.1.router, its weights: 0 of 7 tokens\n"
        "  layers.1.shared_expert: 0 of 7 tokens\n"
        "  layers.1.shared_expert, its gate: 0 of 7 tokens\n"
        "A fused whole-layer kernel, a compiled layer or a skipped layer hides them: "
        "turn it off for this run, or exclude these layers with `layers=`."
    )
    with watch(model, DeltaNet(layers=[0, 2]), Routing(layers=[0, 2, 3])):
        model(text(7)[None])


def test_many_silent_sites_are_counted(text):
    model = tiny_model("qwen3_5_moe")
    for layer in model.model.layers[:3]:
        layer.forward = lambda hidden, **kwargs: hidden
    with (
        pytest.raises(SiteNotReached, match=r"^12 watched sites .*\n(  .*\n){8}  and 4 more\nA fused"),
        watch(model, Residual()),
    ):
        model(text(7)[None])


def test_a_kernel_that_replaces_the_whole_mixer_hides_the_delta_rule(text):
    model = tiny_model("qwen3_5_moe")
    mixer = model.model.layers[2].linear_attn
    mixer.forward = MethodType(lambda self, hidden_states, **kwargs: hidden_states * 0.5, mixer)
    message = r"layers.2.mixer.gate: 0 of 7 tokens\n  layers.2.mixer.decay: 0 of 7"
    with pytest.raises(SiteNotReached, match=message), watch(model, DeltaNet(), Residual()):
        model(text(7)[None])
    with watch(model, Residual()):
        model(text(7)[None])


@pytest.mark.parametrize("part", ["mlp", "linear_attn"])
def test_a_layer_that_reads_only_some_tokens_is_named(text, part):
    model = tiny_model("qwen3_5_moe")
    module = getattr(model.model.layers[1], part)
    inside = type(module).forward

    def half(self, hidden_states, **kwargs):
        out = inside(self, hidden_states[:, :4].contiguous(), **kwargs)
        return torch.nn.functional.pad(out, (0, 0, 0, hidden_states.shape[1] - 4))

    module.forward = MethodType(half, module)
    with pytest.raises(SiteNotReached, match=r"layers.1.*: 12 of 21 tokens"), watch(model, DeltaNet(), Routing()):
        model(torch.stack([text(7)] * 3))


def breaking(model, layer, times=1):
    """Make the MLP of a layer raise in its first calls."""
    left = [times]

    def hook(module, args):
        if left[0]:
            left[0] -= 1
            raise ZeroDivisionError

    return model.model.layers[layer].mlp.register_forward_pre_hook(hook)


def test_a_forward_pass_that_broke_off_is_told(small, text):
    def run():
        with watch(small, DeltaNet(), Attention(), Routing()):
            with pytest.raises(ZeroDivisionError):
                small(text(4)[None])
            small(text(5)[None])

    hook = breaking(small, 1)
    with pytest.raises(SiteNotReached, match=r"layers.1.experts: 5 of 9 tokens"):
        run()
    hook.remove()


def test_steps_of_a_forward_pass_that_broke_off_do_not_mix_with_later_ones(small, text):
    """The step that raised has captured values of its first layers, among them the keys of all steps before."""
    tokens = text(12)
    seen = watch(small, *thorough(small))

    def run():
        with torch.no_grad(), seen:
            cache = small(tokens[None, :6], use_cache=True).past_key_values
            for column in (6, 7):
                small(tokens[None, column : column + 1], past_key_values=cache)
            hook = breaking(small, 1)
            with pytest.raises(ZeroDivisionError):
                small(tokens[None, 8:9], past_key_values=cache)
            hook.remove()
            in_pieces([tokens], (8, 1, 1, 1, 1))(small, seen)

    with pytest.raises(SiteNotReached):
        run()
    assert_same(seen.recording(), recorded(small, one_by_one([tokens[:8], tokens])))
