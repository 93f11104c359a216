"""Every site of every family: read and changed where torch's own hooks would, and nowhere else."""

import pytest
import torch

from qwenlab.checkpoint.sites import find_sites, sites
from qwenlab.errors import CannotIntervene
from qwenlab.interventions import Patch, Scale, Zero, cache_activations, intervene
from tests.interventions import by_hooks


@pytest.fixture
def ids(text):
    return torch.stack([text(11), text(11, 1)])


@pytest.fixture
def others(text):
    return torch.stack([text(11, 2), text(11, 3)])


def changeable(model):
    """All sites but attention's keys."""
    return [site for site in sites(model) if (site.kind, site.word) != ("full_attention", "mixer.key")]


def some(model):
    """Those of one layer of each kind."""
    return [site for site in changeable(model) if site.layer in (1, 3)]


def names(sites):
    return [site.name for site in sites]


@torch.no_grad()
def logits(model, ids):
    return model(ids, use_cache=False).logits


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_values_are_those_of_torchs_hooks(model, ids):
    with cache_activations(model, *names(changeable(model))) as taken:
        logits(model, ids)
    expected = by_hooks.read(model, changeable(model), ids)
    for site in changeable(model):
        value = taken[site.name]
        assert value.shape[:2] == (2, 11) and value.ndim == len(site.dims), site.name
        if (site.kind, site.word) != ("full_attention", "mixer.query"):  # ours is rotated
            assert torch.equal(value, expected[site.name]), site.name


def test_a_models_own_values_change_nothing(model, ids):
    """Bit for bit: at each site alone, and at all of them."""
    with cache_activations(model, *names(changeable(model))) as taken:
        bare = logits(model, ids)
    assert torch.equal(bare, logits(model, ids))
    for name in names(some(model)):
        with intervene(model, Patch(name, cache=taken)):
            assert torch.equal(logits(model, ids), bare), name
    with intervene(model, *(Patch(name, cache=taken) for name in names(changeable(model)))):
        assert torch.equal(logits(model, ids), bare)


def test_another_texts_values_are_put_in_where_hooks_would(model, ids, others):
    """The same logits as with torch's hooks, and others than without."""
    bare, held = logits(model, ids), by_hooks.read(model, some(model), others)
    with cache_activations(model, *names(some(model))) as taken:
        logits(model, others)
    for site in some(model):
        with by_hooks.replaced(model, site, lambda value, name=site.name: held[name]):
            expected = logits(model, ids)
        with intervene(model, Patch(site.name, cache=taken)):
            found = logits(model, ids)
        close(found, expected)
        assert not torch.allclose(expected, bare, atol=1e-5), site.name


def test_half_of_a_value_is_what_hooks_give(model, ids):
    for site in some(model):
        with by_hooks.replaced(model, site, lambda value: value * 0.5):
            expected = logits(model, ids)
        with intervene(model, Scale(site.name, by=0.5)):
            close(logits(model, ids), expected)


def test_zero_changes_something_at_every_site(model, ids):
    bare = logits(model, ids)
    for name in names(some(model)):
        with intervene(model, Zero(name)):
            found = logits(model, ids)
        assert found.isfinite().all() and not torch.equal(found, bare), name


def test_a_decay_of_zero_leaves_nothing_of_the_state(model, ids):
    """Each token's output is then what it would be at the beginning of a text, past the convolution's reach."""
    site = "layers.0.mixer.heads"
    with intervene(model, Zero("layers.0.mixer.decay")), cache_activations(model, site) as forgetful:
        logits(model, ids)
    with cache_activations(
        model, *(f"layers.0.mixer.{word}" for word in ("query", "key", "value", "beta", "gate"))
    ) as taken:
        logits(model, ids)
    query, key, value, beta, gate = (
        taken[f"layers.0.mixer.{word}"].double() for word in ("query", "key", "value", "beta", "gate")
    )
    query, key = (torch.nn.functional.normalize(each, dim=-1) for each in (query, key))
    of = value.shape[2] // key.shape[2]
    match = (query * key).sum(-1).repeat_interleave(of, dim=2) * query.shape[-1] ** -0.5
    made = (match * beta)[..., None] * value
    mixer = model.get_submodule("model.layers.0.linear_attn")
    norm = getattr(mixer, "o_norm", None) or mixer.norm
    made = made * torch.rsqrt(made.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight
    torch.testing.assert_close(forgetful[site].double(), made * gate * gate.sigmoid(), rtol=1e-3, atol=1e-4)


def test_keys_of_attention_cannot_be_changed(model, ids):
    (site,) = find_sites(model, "layers.*.mixer.key", kind="full_attention")
    with pytest.raises(CannotIntervene) as caught, intervene(model, Zero(site.name)):
        pass
    assert str(caught.value) == (
        "layers.3.mixer.key cannot be changed: attention caches rotated keys, and each call holds those of earlier "
        "tokens too.\n"
        "Change mixer.query, mixer.value or mixer.heads, or hide tokens with Window(n)."
    )


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_attention_implementation(moe, ids, implementation):
    before = moe.config._attn_implementation
    moe.set_attn_implementation(implementation)
    with (
        intervene(moe, Zero("layers.3.mixer.query")),
        cache_activations(moe, "layers.3.mixer.heads", "layers.3.mixer.value") as taken,
    ):
        logits(moe, ids)
    moe.set_attn_implementation(before)
    gate = by_hooks.read(moe, find_sites(moe, "layers.3.mixer.gate"), ids)["layers.3.mixer.gate"]
    value = taken["layers.3.mixer.value"].repeat_interleave(2, dim=2)
    even = value.cumsum(1) / torch.arange(1, 12)[:, None, None]  # a query of zeros looks at all tokens alike
    torch.testing.assert_close(taken["layers.3.mixer.heads"], even * gate.sigmoid(), rtol=1e-4, atol=1e-5)


def test_hidden_states_and_router_logits_that_transformers_returns_are_the_changed_ones(moe, ids):
    """transformers collects them with hooks on the layers: they must contain the changed outputs."""
    with torch.no_grad(), intervene(moe, Zero("layers.1.residual"), Zero("layers.2.router")):
        out = moe(ids, output_hidden_states=True, output_router_logits=True)
    assert not out.hidden_states[2].any() and out.hidden_states[1].any()
    assert not out.router_logits[2].any() and out.router_logits[1].any()
