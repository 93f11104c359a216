"""Interventions on routed experts, against weighted sums of experts computed in float64."""

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.errors import BadArgument, CannotIntervene, UnknownLayer
from qwenlab.interventions import (
    ForceExperts,
    MaskExperts,
    NoSharedExpert,
    Resample,
    ShuffleRouter,
    TopK,
    UniformRouter,
    cache_activations,
    intervene,
)
from qwenlab.probes import Routing, watch
from qwenlab.testing.models import tiny_model
from tests.interventions import fed
from tests.interventions.feeding import logits
from tests.probes import by_hand
from tests.tiny_models import FAMILIES

EXPERTS, K = 8, 2

# --- what they say they do: experts and their weights, for one token's logits ---


def plain(logit, k=K, *, to_one=True):
    """{expert: weight}: the k of largest probability; weights made to sum to 1, or as they come."""
    p = np.exp(logit - logit.max())
    p /= p.sum()
    top = sorted(range(len(p)), key=lambda expert: -p[expert])[:k]
    total = sum(p[expert] for expert in top) if to_one else 1
    return {expert: p[expert] / total for expert in top}


def masked(*experts):
    return lambda logit, **how: plain(np.where(np.isin(np.arange(EXPERTS), experts), -np.inf, logit), **how)


def top(n):
    return lambda logit, **how: plain(logit, n, **how)


def forced(*experts):
    def choose(logit, **how):
        odds = {expert: np.exp(logit[expert]) for expert in experts}
        return {expert: each / sum(odds.values()) for expert, each in odds.items()}

    return choose


def even(choose, k=K):
    return lambda logit, **how: dict.fromkeys(choose(logit, **how), 1 / k)


def mixed(mlp, x, choose, *, shared=True):
    """What experts add [token, channel] to a stream, token by token."""
    router, held, out = mlp.gate, mlp.shared_expert, []
    gate_up, down = by_hand.array(mlp.experts.gate_up_proj), by_hand.array(mlp.experts.down_proj)
    inner = np.concatenate([by_hand.array(held.gate_proj.weight), by_hand.array(held.up_proj.weight)])
    for token in x:
        weights = choose(by_hand.array(router.weight) @ token, to_one=getattr(router, "norm_topk_prob", True))
        made = sum(weight * by_hand.feed_forward(token, gate_up[e], down[e]) for e, weight in weights.items())
        if shared:
            open_ = by_hand.sigmoid(by_hand.array(mlp.shared_expert_gate.weight)[0] @ token)
            made = made + open_ * by_hand.feed_forward(token, inner, by_hand.array(held.down_proj.weight))
        out.append(made)
    return np.array(out)


CASES = {
    "masked": ((MaskExperts([0, 3]),), masked(0, 3), {}),
    "masked in one layer": ((MaskExperts([1, 2, 5], layers=[2]),), masked(1, 2, 5), {"layers": [2]}),
    "as many masked as can be": ((MaskExperts(range(6)),), masked(*range(6)), {}),
    "one": ((TopK(1),), top(1), {}),
    "five": ((TopK(5),), top(5), {}),
    "all": ((TopK(EXPERTS),), top(EXPERTS), {}),
    "forced": ((ForceExperts([2, 6]),), forced(2, 6), {}),
    "forced in two layers": ((ForceExperts([7, 0], layers=[0, 3]),), forced(0, 7), {"layers": [0, 3]}),
    "uniform": ((UniformRouter(),), even(plain), {}),
    "no shared expert": ((NoSharedExpert(),), plain, {"shared": False}),
    "three forced": ((TopK(3), ForceExperts([1, 4, 6])), forced(1, 4, 6), {}),
    "masked and uniform": ((MaskExperts([0, 3]), UniformRouter()), even(masked(0, 3)), {}),
    "four, evenly": ((TopK(4), UniformRouter()), even(top(4), 4), {}),
    "one of the unmasked": ((MaskExperts([0, 3]), TopK(1)), lambda at, **how: masked(0, 3)(at, k=1, **how), {}),
    "masked twice": ((MaskExperts([0]), MaskExperts([3])), masked(0, 3), {}),
}
cases = pytest.mark.parametrize(("interventions", "choose", "how"), CASES.values(), ids=CASES)
ALL = (MaskExperts([0, 3]), TopK(3), ForceExperts([2, 6]), UniformRouter(), ShuffleRouter(), NoSharedExpert())
each_intervention = pytest.mark.parametrize("each", ALL, ids=str)


@pytest.fixture(scope="module", params=["moe", "next"])
def sparse(request):
    """`next` has a dense layer 1, and takes the weights as they come."""
    return tiny_model(**FAMILIES[request.param])


@pytest.fixture
def texts(text):
    return [text(length, seed) for seed, length in enumerate(fed.LENGTHS)]


def assert_mixed(model, interventions, tokens, choose, layers=None, shared=True):
    """What the experts of every layer add, under the interventions, is that worked out from the layer's own input."""
    decoder = decoder_of(model)
    with intervene(model, *interventions):
        found = by_hand.inputs_of(model, tokens)
    for layer in decoder.layers_with("router"):
        changed = layers is None or layer in layers
        expected = mixed(
            decoder.part(layer, "mlp"), found[layer]["mlp"], choose if changed else plain, shared=shared or not changed
        )
        out = found[layer]["added"]["mlp"]
        np.testing.assert_allclose(out, expected, rtol=1e-3, atol=2e-5 * abs(out).max(), err_msg=f"layer {layer}")


@cases
def test_as_by_hand(sparse, texts, interventions, choose, how):
    assert_mixed(sparse, interventions, texts[0], choose, **how)


@pytest.mark.slow
@each_intervention
def test_however_a_text_is_fed(sparse, texts, each):
    fed.assert_same_however_fed(sparse, [each], texts)
    fed.assert_nothing_left(sparse, [each], texts[0])


@each_intervention
def test_gradient(small, texts, each):
    fed.assert_gradient(small, [each], texts[0])


def test_what_a_router_learns(text):
    """From its weights, where there are any of its own."""
    model, ids = tiny_model("qwen3_5_moe", layer_types=["linear_attention", "full_attention"]).train(), text(9)[None]

    def learns(*interventions):
        model.zero_grad()
        with intervene(model, *interventions):
            model(ids, labels=ids, use_cache=False).loss.backward()
        gate = model.model.layers[0].mlp.gate.weight.grad
        return gate is not None and bool(gate.any())

    assert not learns(UniformRouter())
    assert learns(ForceExperts([2, 6])) and learns(MaskExperts([0])) and learns(ShuffleRouter())


# --- laws ---


def test_the_configs_own_number_changes_nothing(sparse, texts):
    """Bit for bit: the choice that is made anew is the router's own."""
    bare = logits(sparse, texts[0][None])
    with intervene(sparse, TopK(K)):
        assert torch.equal(logits(sparse, texts[0][None]), bare)


@settings(max_examples=15)
@given(some=st.sets(st.integers(0, EXPERTS - 1), min_size=2, max_size=2))
def test_forcing_some_is_masking_the_others(small, some):
    ids = torch.arange(1, 8)[None]
    with intervene(small, ForceExperts(some)):
        forced = logits(small, ids)
    with intervene(small, MaskExperts(set(range(EXPERTS)) - some)):
        assert torch.equal(logits(small, ids), forced)


# --- shuffled ---


@torch.no_grad()
def routed(model, ids, layer, *interventions):
    """What a router returns: logits, weights and choice."""
    found = []
    with intervene(model, *interventions) if interventions else contextlib.nullcontext():
        handle = decoder_of(model).part(layer, "router").register_forward_hook(lambda m, a, out: found.extend(out))
        try:
            model(ids, use_cache=False)
        finally:
            handle.remove()
    return found


def permutation(model, ids, layer, seed=0):
    """By expert, the expert that replaces it in a layer: read from the choices."""
    _, _, before = routed(model, ids, layer)
    _, _, after = routed(model, ids, layer, ShuffleRouter(seed=seed, layers=[layer]))
    place = {}
    for old, new in zip(before.flatten().tolist(), after.flatten().tolist(), strict=True):
        assert place.setdefault(old, new) == new
    return [place[expert] for expert in range(EXPERTS)]


def test_shuffled_experts_trade_places(moe, text):
    ids = text(100)[None]
    found = [permutation(moe, ids, layer) for layer in range(4)]
    for place in found:
        assert sorted(place) == list(range(EXPERTS))
        assert all(new != old for old, new in enumerate(place))
    assert len({tuple(place) for place in found}) == 4  # each layer its own
    assert permutation(moe, ids, 0) == found[0] != permutation(moe, ids, 0, seed=1)


def test_shuffled_is_as_by_hand(sparse, text):
    tokens = text(100)
    place = permutation(sparse, tokens[None], 2)

    def choose(logit, **how):
        return {place[expert]: weight for expert, weight in plain(logit, **how).items()}

    assert_mixed(sparse, (ShuffleRouter(layers=[2]),), tokens, choose, layers=[2])


def test_what_a_shuffled_router_returns_is_one_choice(small, text):
    """The logits are those under which it would have chosen so."""
    ids = text(50)[None]
    before, weights, _ = routed(small, ids, 0)
    after, same, chosen = routed(small, ids, 0, ShuffleRouter())
    assert torch.equal(same, weights)
    assert torch.equal(after.softmax(-1).topk(K).indices, chosen)
    assert torch.equal(after.sort().values, before.sort().values)


# --- watched ---


def test_a_watch_sees_the_choice_that_was_made(moe, text):
    def seen(*interventions):
        with torch.no_grad(), watch(moe, Routing(every=1)) as found, intervene(moe, *interventions):
            moe(text(20)[None])
        return found.recording()["routing"].sum(("label", "fold"))

    assert (seen(TopK(3))["load"].sum("expert") == 60).all()
    forced = seen(ForceExperts([2, 6]))["load"]
    assert (forced.sel(expert=[2, 6]) == 20).all() and (forced.sum("expert") == 40).all()
    np.testing.assert_allclose(seen(UniformRouter())["topk_entropy_sum"], 20 * np.log(2), rtol=1e-6)
    assert (seen(NoSharedExpert())["shared_share_sum"] == 0).all()
    layer = dict(layer=0)  # its input is that of the plain model
    plainly, shuffled = (each.sel(layer) for each in (seen(TopK(K)), seen(ShuffleRouter())))
    np.testing.assert_array_equal(np.sort(plainly["load"]), np.sort(shuffled["load"]))
    assert not plainly["load"].equals(shuffled["load"])
    for name in ("entropy_sum", "margin_sum", "repeated_sum"):
        np.testing.assert_allclose(shuffled[name], plainly[name], rtol=1e-5)


def test_tokens_with_unlike_numbers_of_experts_are_not_added_up(moe, text):
    with (
        pytest.raises(CannotIntervene, match=r"Routing saw tokens with \d experts and with \d.*\nUse one watch per"),
        watch(moe, Routing()),
        intervene(moe, TopK(3, layers=[1])),
    ):
        logits(moe, text(9)[None])


# --- what they refuse ---


@pytest.mark.parametrize(("make", "said"), [
    (lambda: TopK(0), "TopK(n=0): give an integer number of experts, 1 or more."),
    (lambda: TopK(True), "TopK(n=True): give an integer number of experts, 1 or more."),
    (lambda: TopK(1.5), "TopK(n=1.5): give an integer number of experts, 1 or more."),
    (lambda: MaskExperts(3), "MaskExperts(experts=...): 3 is one number; give a list of them, [3]."),
    (lambda: MaskExperts([]), "MaskExperts(experts=...): give at least one integer, each 0 or more; got []."),
    (lambda: ForceExperts([-1]), "ForceExperts(experts=...): give at least one integer, each 0 or more; got [-1]."),
    (lambda: TopK(1, layers=[]), "TopK(layers=...): give at least one integer, each 0 or more; got []."),
])  # fmt: skip
def test_arguments_that_are_none(make, said):
    with pytest.raises(BadArgument) as caught:
        make()
    assert str(caught.value) == said


def refused(error, model, ids, *interventions):
    with pytest.raises(error) as caught, intervene(model, *interventions):
        logits(model, ids)
    return str(caught.value)


@pytest.mark.parametrize(("each", "said"), [
    (MaskExperts([0, 8]), "MaskExperts([0, 8]): layers.0.router has experts 0 to 7; got expert 8."),
    (ForceExperts([9, 1]), "ForceExperts([1, 9]): layers.0.router has experts 0 to 7; got expert 9."),
    (TopK(9), "TopK(9): layers.0.router has 8 experts to choose from, not 9."),
])  # fmt: skip
def test_experts_that_are_not_there(small, text, each, said):
    assert refused(BadArgument, small, text(4)[None], each) == said


@pytest.mark.parametrize("each", ALL, ids=str)
def test_models_and_layers_without_experts(dense, text, each):
    assert refused(CannotIntervene, dense, text(4)[None], each) == (
        f"{each}: no layer of this Qwen3_5TextModel has routed experts.\n"
        'Change the dense MLPs by their sites: "layers.*.mlp".'
    )


def test_a_dense_layer_between(text):
    model = tiny_model(**FAMILIES["next"])
    assert refused(UnknownLayer, model, text(4)[None], NoSharedExpert(layers=[0, 1])) == (
        "NoSharedExpert(layers=[0, 1]) names layers [1]; it changes layers [0, 2, 3] of this model.\n"
        "Leave `layers` out to change all of them."
    )
    with intervene(model, UniformRouter()) as session:  # by default it is left alone
        logits(model, text(4)[None])
    assert [each.where for each in session.hits["UniformRouter()"]] == [f"layers.{n}.router" for n in (0, 2, 3)]


def test_too_few_experts_left(small, text):
    """Also where only some of those that are left are too few for a larger choice."""
    assert refused(CannotIntervene, small, text(4)[None], MaskExperts(range(7))) == (
        "MaskExperts([0, 1, 2, 3, 4, 5, 6]): layers.0.router chooses 2 experts per token, and only 1 remain."
        "\nLeave at least 2 unmasked, or choose fewer per token: TopK(n) before it."
    )
    with intervene(small, TopK(1), MaskExperts(range(7))):
        logits(small, text(4)[None])
    assert refused(CannotIntervene, small, text(4)[None], MaskExperts([0]), TopK(8)).startswith(
        "TopK(8): layers.0.router chooses 8 experts per token, and only 7 remain."
    )


def test_as_many_are_forced_as_a_token_is_given(small, text):
    assert refused(CannotIntervene, small, text(4)[None], ForceExperts([1, 2, 3])) == (
        "ForceExperts([1, 2, 3]) names 3 experts, and a token gets 2.\nName 2, or put TopK(3) before it."
    )


def test_one_expert_cannot_trade_places(text):
    model = tiny_model("qwen3_5_moe", layer_types=["full_attention"], num_experts=1, num_experts_per_tok=1)
    assert refused(CannotIntervene, model, text(4)[None], ShuffleRouter()) == (
        "ShuffleRouter(): layers.0.router has one expert; a permutation needs two."
    )


def test_logits_of_another_text(small, text):
    """As `ShuffleRouter` recommends: a token is routed as one of another text was."""
    with cache_activations(small, "layers.0.router") as taken:
        logits(small, text(30, 5)[None])
    found, _, chosen = routed(small, text(12)[None], 0, Resample("layers.0.router", cache=taken))
    pool = taken["layers.0.router"][0]
    assert (torch.cdist(found.double(), pool.double()).amin(dim=1) < 1e-6).all()
    assert torch.equal(found.softmax(-1).topk(K).indices, chosen)
