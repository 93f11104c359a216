"""`intervene`: what a block changes, for how long, in which order, and its errors when nothing changed."""

import contextlib
import copy
import json

import pytest
import torch

import qwenlab as ql
from qwenlab.errors import BadArgument, InterventionNotApplied, NoForwardPass
from qwenlab.interventions import Patch, Scale, Zero, cache_activations, intervene
from qwenlab.probes import DeltaNet, Residual, watch
from qwenlab.testing.checkpoints import tiny_checkpoint
from qwenlab.testing.models import tiny_model
from tests.interventions.feeding import at, logits, of_every_sort, taken
from tests.probes.traces import traces


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    return ql.open(tiny_checkpoint(tmp_path_factory.mktemp("changed"), mtp=None))


@pytest.fixture
def ids(text):
    return torch.stack([text(9), text(9, 1)])


# --- what is left behind ---


def test_nothing_is_left_behind(model, text, ids):
    interventions, bare, before = of_every_sort(model, text), logits(model, ids), traces(model)
    with intervene(model, *interventions):
        assert traces(model) != before
        assert not torch.equal(logits(model, ids), bare)
    assert traces(model) == before
    assert torch.equal(logits(model, ids), bare)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("inside", [False, True])
def test_nothing_is_left_behind_when_the_block_raises(small, text, ids, error, inside):
    """In the block, or in the middle of a pass."""
    bare, before = logits(small, ids), traces(small)

    def fail(*_):
        raise error

    def run():
        with intervene(small, *of_every_sort(small, text)):
            handle = small.model.layers[1].mlp.register_forward_hook(fail)
            try:
                if inside:
                    logits(small, ids)
                fail()
            finally:
                handle.remove()

    with pytest.raises(error):
        run()
    assert torch.equal(logits(small, ids), bare)
    assert traces(small) == before


def test_nothing_is_left_behind_when_an_intervention_does_not_fit(small, ids):
    before = traces(small)
    with pytest.raises(ql.errors.UnknownSite), intervene(small, Zero("layers.0.mixer"), Zero("layers.7.mixer")):
        pass
    assert traces(small) == before
    with watch(small, Residual()) as seen:
        logits(small, ids)
    assert json.loads(seen.recording().attrs["interventions"]) == []


def test_no_weight_and_no_random_state_is_touched(small, text, ids):
    weights, random = copy.deepcopy(small.state_dict()), torch.get_rng_state()
    with intervene(small, *of_every_sort(small, text)):
        logits(small, ids)
    assert all(torch.equal(weights[name], weight) for name, weight in small.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


# --- order, nesting ---


@pytest.mark.parametrize(
    "site", ["layers.0.mixer", "layers.0.mixer.beta", "layers.1.mixer.query", "layers.0.mixer.heads"]
)
@pytest.mark.parametrize("nested", [False, True])
def test_interventions_of_one_place_act_in_the_order_given(small, ids, site, nested):
    """x, then half of it, then another text's value; and the other way round."""
    other = taken(small, ids.flip(0), site)
    half, put = Scale(site, by=0.5), Patch(site, cache=other)

    def value(*interventions):
        with contextlib.ExitStack() as blocks:
            for group in interventions if nested else [interventions]:
                blocks.enter_context(intervene(small, *([group] if nested else group)))
            return at(small, ids, site)

    torch.testing.assert_close(value(half, put), other[site], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(value(put, half), other[site] / 2, rtol=1e-5, atol=1e-6)


def test_blocks_left_in_another_order(small, ids):
    before = traces(small)
    with intervene(small, Zero("layers.0.mlp")):
        second = logits(small, ids)
    one, two = intervene(small, Zero("layers.0.mixer")), intervene(small, Zero("layers.0.mlp"))
    one.__enter__()
    two.__enter__()
    logits(small, ids)
    one.__exit__(None, None, None)
    assert torch.equal(logits(small, ids), second)
    two.__exit__(None, None, None)
    assert traces(small) == before


def test_a_block_that_has_not_ended(small, ids):
    block = intervene(small, Zero("layers.0.mixer"))
    with block:
        with pytest.raises(BadArgument) as caught, block:
            pass
        logits(small, ids)
    assert str(caught.value) == "This context manager is already active.\nCreate a new intervene(model, ...) to nest."
    with block:  # and then it may begin again
        logits(small, ids)


# --- other models ---


def test_a_copy_made_in_a_block_is_not_changed(small, ids):
    bare = logits(small, ids)
    with intervene(small, Zero("layers.*.mixer"), Scale("layers.0.mixer.beta", by=0.5), Zero("layers.1.mixer.query")):
        twin = copy.deepcopy(small)
        assert torch.equal(logits(twin, ids), bare)
        assert not torch.equal(logits(small, ids), bare)
    assert torch.equal(logits(twin, ids), bare)
    with intervene(twin, Zero("layers.0.mixer")):
        assert not torch.equal(logits(twin, ids), bare)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_another_model_of_the_family_is_not_changed(text, ids, attention):
    """They share the functions that they call by name."""
    ours, other = (tiny_model("qwen3_5_moe", seed=seed, hidden_size=32) for seed in (0, 1))
    for model in (ours, other):
        model.set_attn_implementation(attention)
    bare = logits(other, ids)
    with intervene(ours, *of_every_sort(ours, text)):
        assert torch.equal(logits(other, ids), bare)
        logits(ours, ids)
        assert torch.equal(logits(other, ids), bare)
        with intervene(other, Zero("layers.0.mixer.beta")):
            assert not torch.equal(logits(other, ids), bare)


def test_a_layer_called_outside_a_pass_is_not_changed(small, ids):
    stream = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    bare = small.model.layers[0].mlp(stream)
    with intervene(small, Zero("layers.0.mlp")):
        assert torch.equal(small.model.layers[0].mlp(stream), bare)
        logits(small, ids)
        assert torch.equal(small.model.layers[0].mlp(stream), bare)
        handle = small.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with contextlib.suppress(ZeroDivisionError):
            logits(small, ids)
        handle.remove()
        assert torch.equal(small.model.layers[0].mlp(stream), bare)


def test_a_checkpoint_or_anything_that_holds_a_model(ckpt, ids):
    with ql.intervene(ckpt, Zero("layers.0.mixer")):
        logits(ckpt.model, ids)
    with ql.intervene(torch.nn.ModuleDict({"policy": ckpt.model}), Zero("layers.0.mixer")):
        logits(ckpt.model, ids)
    with pytest.raises(BadArgument) as caught:
        ql.intervene("toy-moe", Zero("layers.0.mixer"))
    assert str(caught.value) == (
        "Expected a model or a Checkpoint, got a str.\n"
        "Pass a transformers model, or the Checkpoint that qwenlab.open(...) returned."
    )


# --- errors for interventions without effect ---


def message(error, model, ids, *interventions, run=logits):
    with pytest.raises(error) as caught, intervene(model, *interventions):
        run(model, ids)
    return str(caught.value)


def test_no_forward_pass(small, ids):
    assert message(NoForwardPass, small, ids, Zero("layers.0.mixer"), run=lambda model, ids: None) == (
        "intervene: this Qwen3_5MoeTextModel ran no forward pass inside the `with` block.\n"
        "Inside the block, call the same model object that you gave to intervene, or one that contains it."
    )


def test_an_error_in_the_block_is_not_covered_by_ours(small):
    with pytest.raises(ZeroDivisionError), intervene(small, Zero("layers.0.mixer")):
        raise ZeroDivisionError


def test_a_skipped_layer_is_named(ids):
    model = tiny_model("qwen3_5_moe")
    model.model.layers[1].forward = lambda hidden, **kwargs: hidden
    assert message(InterventionNotApplied, model, ids, Zero("layers.0.mixer"), Zero("layers.*.mixer.heads")) == (
        "Zero('layers.*.mixer.heads'): layers.1.mixer.heads was reached by 0 of 1 forward passes.\n"
        "A fused whole-layer kernel, a compiled layer or a skipped layer hides it: turn that off for this block."
    )
    del model.model.layers[1].forward

    def half_of_it(model, ids):
        logits(model, ids)
        for layer in model.model.layers[1:3]:
            layer.forward = lambda hidden, **kwargs: hidden
        logits(model, ids)

    assert message(InterventionNotApplied, model, ids, Zero("layers.[12].mlp"), run=half_of_it).startswith(
        "Zero('layers.[12].mlp'): layers.1.mlp was reached by 1 of 2 forward passes, and 1 more point was missed.\n"
    )


def test_positions_that_no_text_has(small, ids):
    assert message(InterventionNotApplied, small, ids, Zero("layers.0.mixer", positions=[9, 10])) == (
        "Zero('layers.0.mixer', positions=[9, 10]) never acted: the model read none of the tokens that it changes.\n"
        "Read a text that has such tokens, or give other positions."
    )


def test_a_pass_that_broke_off_does_not_count(small, ids):
    """Out of memory, caught, and once more: the sites behind were reached by every pass that ended."""

    def fail(*_):
        raise MemoryError

    with intervene(small, Zero("layers.1.mlp"), Zero("layers.0.mixer")) as session:
        handle = small.model.layers[1].input_layernorm.register_forward_hook(fail)
        with contextlib.suppress(MemoryError):
            logits(small, ids)
        handle.remove()
        logits(small, ids)
    assert [(each.reached, each.acted) for places in session.hits.values() for each in places] == [(1, 1), (1, 1)]


def test_what_are_no_interventions(small):
    for given, found in (((), "none"), ((Zero,), "Zero"), (("layers.0.mixer",), "str"), ((DeltaNet(),), "DeltaNet")):
        with pytest.raises(BadArgument) as caught:
            intervene(small, *given)
        assert str(caught.value) == (
            f"intervene(model, *interventions) takes interventions; got {found}.\n"
            'Write for example intervene(model, Zero("layers.3.mixer")).'
        )
    with pytest.raises(BadArgument) as caught:
        intervene(small, Zero("layers.0.mixer"), Zero("layers.0.mixer"))
    assert str(caught.value) == "intervene got Zero('layers.0.mixer') twice.\nGive each intervention once."


def test_take_in_a_block_holds_the_changed_values(small, ids):
    with intervene(small, Zero("layers.0.mlp")), cache_activations(small, "layers.0.mlp") as inside:
        logits(small, ids)
    with cache_activations(small, "layers.0.mlp") as outside, intervene(small, Zero("layers.0.mlp")):
        logits(small, ids)
    assert not inside["layers.0.mlp"].any() and outside["layers.0.mlp"].any()
