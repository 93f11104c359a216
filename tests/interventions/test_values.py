"""Each value intervention against what its docstring says, value by value."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from qwenlab.checkpoint.sites import find_sites, sites
from qwenlab.errors import BadArgument, CannotIntervene, UnknownLayer, UnknownSite
from qwenlab.interventions import Identity, Mean, Noise, Patch, Resample, Scale, Zero, cache_activations, intervene
from tests.interventions import by_hooks
from tests.interventions.feeding import at, logits, taken


@pytest.fixture
def ids(text):
    return torch.stack([text(9), text(9, 1)])


def refused(error, model, ids, *interventions):
    with pytest.raises(error) as caught, intervene(model, *interventions):
        logits(model, ids)
    return str(caught.value)


# --- zero and scale ---


def test_zero(small, ids):
    with intervene(small, Zero("layers.1.mlp")):
        assert not at(small, ids, "layers.1.mlp").any()


@settings(max_examples=15)
@given(site=st.sampled_from(["layers.0.mixer", "layers.1.residual", "layers.0.mixer.heads", "layers.1.shared_expert"]))
def test_scaled_by_nothing_is_zero(small, site):
    ids = torch.arange(1, 8)[None]
    with intervene(small, Scale(site, by=0)):
        scaled = logits(small, ids)
    with intervene(small, Zero(site)):
        torch.testing.assert_close(logits(small, ids), scaled, rtol=0, atol=0)


@settings(max_examples=15)
@given(a=st.floats(-4, 4), b=st.floats(-4, 4))
def test_scaled_twice_is_scaled_by_the_product(small, a, b):
    ids, site = torch.arange(1, 8)[None], "layers.0.mixer"
    if 1 in (a, b, a * b):
        return
    with intervene(small, Scale(site, by=a)), intervene(small, Scale(site, by=b)):
        twice = at(small, ids, site)
    with intervene(small, Scale(site, by=a * b)):
        torch.testing.assert_close(at(small, ids, site), twice, rtol=1e-5, atol=1e-6)


def test_a_scale_that_changes_nothing():
    for make in (lambda: Scale("layers.0.mlp"), lambda: Scale("layers.0.mlp", by=1)):
        with pytest.raises(BadArgument) as caught:
            make()
        assert str(caught.value) == "Scale(by=1.0) changes nothing.\nGive the factor, for example by=0.5."


@pytest.mark.parametrize("layer", [0, 1])
def test_a_head_knocked_out_is_missing_from_the_sum(small, ids, layer):
    """What each head adds to the mixer's output: its channels through its columns of the projection, in float64."""
    mixer = small.model.layers[layer].self_attn if layer else small.model.layers[layer].linear_attn
    weight = (mixer.o_proj if layer else mixer.out_proj).weight.detach().double()
    (site,) = find_sites(small, f"layers.{layer}.mixer.heads")
    heads = by_hooks.read(small, [site], ids)[site.name].double()  # [sequence, position, head, channel]
    columns = weight.unflatten(1, heads.shape[2:])
    parts = [heads[:, :, head] @ columns[:, head].T for head in range(heads.shape[2])]
    with intervene(small, Zero(site.name, heads=[1, 3])):
        found = at(small, ids, f"layers.{layer}.mixer")
    torch.testing.assert_close(found.double(), parts[0] + parts[2], rtol=1e-4, atol=1e-5)


# --- mean and resample ---


def test_mean(small, text, ids):
    """Over the tokens of all the texts, each once, whatever their lengths."""
    reference = torch.stack([text(6, 5), torch.cat([text(4, 6), torch.zeros(2, dtype=torch.long)])])
    mask = torch.ones_like(reference)
    mask[1, 4:] = 0
    with cache_activations(small, "layers.0.mixer") as over:
        logits(small, reference, attention_mask=mask)
    by_hand = by_hooks.read(small, find_sites(small, "layers.0.mixer"), reference)["layers.0.mixer"]
    expected = torch.cat([by_hand[0], by_hand[1, :4]]).double().mean(0).float()
    with intervene(small, Mean("layers.0.mixer", cache=over)):
        found = at(small, ids, "layers.0.mixer")
    torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear_attention", "full_attention"])
def test_the_mean_of_one_kind_of_mixer(moe, text, ids, kind):
    """Every token gets the same of those layers; the others still tell tokens apart."""
    over = taken(moe, text(30, 5)[None], "layers.*.mixer")
    sites = [site.name for site in find_sites(moe, "layers.*.mixer")]
    with intervene(moe, Mean("layers.*.mixer", kind=kind, cache=over)):
        found = taken(moe, ids, *sites)
    for site in find_sites(moe, "layers.*.mixer"):
        flat = bool((found[site.name].std(dim=(0, 1)) < 1e-6).all())
        assert flat == (site.kind == kind), site.name
        if flat:
            expected = over[site.name].double().mean(dim=(0, 1))
            torch.testing.assert_close(found[site.name][0, 0].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def drawn(small):
    """A pool of eight values, and which of them each of 2 x 400 tokens was given; all under seed 0."""
    pool = taken(small, torch.arange(1, 9)[None], "layers.0.mlp")
    ids = (torch.arange(800) % 250 + 1).reshape(2, 400)
    with intervene(small, Resample("layers.0.mlp", cache=pool)):
        found = at(small, ids, "layers.0.mlp")
    distance = torch.cdist(found.flatten(0, 1).double(), pool["layers.0.mlp"][0].double())
    assert (distance.amin(dim=1) < 1e-6).all()  # nothing but values of the pool
    return pool, ids, distance.argmin(dim=1).reshape(2, 400).numpy()


def test_resample_draws_evenly_and_without_memory(drawn):
    _, _, index = drawn
    assert stats.chisquare(np.bincount(index.flatten(), minlength=8)).pvalue > 0.01
    follows = np.zeros((8, 8))
    np.add.at(follows, (index[:, :-1].flatten(), index[:, 1:].flatten()), 1)
    assert stats.chi2_contingency(follows).pvalue > 0.01
    assert stats.chi2_contingency([np.bincount(row, minlength=8) for row in index]).pvalue > 0.01
    assert 0.05 < (index[0] == index[1]).mean() < 0.2  # 1/8 by chance


def test_resample_by_seed(small, drawn):
    pool, ids, index = drawn

    def again(seed):
        with intervene(small, Resample("layers.0.mlp", cache=pool, seed=seed)):
            found = at(small, ids, "layers.0.mlp")
        return torch.cdist(found.flatten(0, 1), pool["layers.0.mlp"][0]).argmin(dim=1).reshape(2, 400).numpy()

    assert (again(0) == index).all()
    assert 0.05 < (again(1) == index).mean() < 0.2


# --- noise ---


@pytest.mark.parametrize("site", ["layers.0.mixer", "layers.0.mixer.heads", "layers.1.residual"])
def test_noise_has_the_values_norm_and_no_direction(small, text, site):
    ids = torch.stack([text(200), text(200, 1)])
    before = at(small, ids, site)
    with intervene(small, Noise(site)):
        after = at(small, ids, site)
    torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1), rtol=1e-5, atol=1e-6)
    unit = torch.nn.functional.normalize(after, dim=-1).flatten(0, -2).double()
    cosine = (unit * torch.nn.functional.normalize(before, dim=-1).flatten(0, -2)).sum(-1)
    d, n = unit.shape[-1], len(unit)
    assert abs(cosine.mean()) < 4 / (n * d) ** 0.5
    assert float(cosine.var()) == pytest.approx(1 / d, rel=0.25)
    beta = stats.beta(1 / 2, (d - 1) / 2)  # of a squared channel of a point on the sphere
    assert stats.kstest(unit[:, 0] ** 2, beta.cdf).pvalue > 0.001
    moments = unit.T @ unit / n * d
    assert (moments - torch.eye(d)).abs().max() < 6 / n**0.5


def test_noise_by_seed_and_site(small, text):
    ids = text(50)[None]

    def made(site, seed):
        with intervene(small, Noise(site, seed=seed)):
            return torch.nn.functional.normalize(at(small, ids, site), dim=-1)

    first = made("layers.0.mixer", 0)
    assert torch.equal(made("layers.0.mixer", 0), first)
    for other in (made("layers.0.mixer", 1), made("layers.0.mlp", 0), made("layers.1.mixer", 0)):
        assert abs(float((first * other).sum(-1).mean())) < 0.15


def test_noise_leaves_torchs_own_alone(small, ids):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with intervene(small, Noise("layers.0.mixer"), Resample("layers.0.mlp", cache=taken(small, ids, "layers.0.mlp"))):
        logits(small, ids)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("word", ["beta", "decay"])
def test_noise_for_numbers_without_direction(small, ids, word):
    assert refused(CannotIntervene, small, ids, Noise(f"layers.0.mixer.{word}")) == (
        f"Noise('layers.0.mixer.{word}'): layers.0.mixer.{word} is one number per head, without a "
        "direction to draw.\nUse Resample or SetGate."
    )


# --- identity ---


def test_identity_is_the_model_without_the_layer(moe, ids):
    """All that a layer adds is left out: the same logits as with its two contributions zeroed, and as without it."""
    with intervene(moe, Identity([1, 3])):
        found = logits(moe, ids)
    with intervene(moe, Zero("layers.[13].mixer"), Zero("layers.[13].mlp")):
        torch.testing.assert_close(logits(moe, ids), found, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        stream = moe.model.embed_tokens(ids)
        rotary = moe.model.rotary_emb(stream, torch.arange(ids.shape[1]).expand(3, 2, -1))
        for layer in (0, 2):
            stream = moe.model.layers[layer](stream, position_embeddings=rotary)
        expected = moe.lm_head(moe.model.norm(stream))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_identity_of_all_layers(small, ids):
    with intervene(small, Identity([0, 1])):
        found = logits(small, ids)
    assert torch.equal(found, small.lm_head(small.model.norm(small.model.embed_tokens(ids))))


def test_identity_of_a_layer_that_is_not_there(small, ids):
    assert refused(UnknownLayer, small, ids, Identity([2])) == (
        "Identity([2]): this model has layers 0 to 1; got layer 2."
    )


# --- patch ---


def test_patch_at_positions(small, text, ids):
    others = torch.stack([text(9, 2), text(9, 3)])
    values = taken(small, others, "layers.0.residual")
    with intervene(small, Patch("layers.0.residual", cache=values, positions=[2, 5])):
        found = at(small, ids, "layers.0.residual")
    expected = at(small, ids, "layers.0.residual")
    expected[:, [2, 5]] = values["layers.0.residual"][:, [2, 5]]
    assert torch.equal(found, expected)


def test_one_sequence_serves_for_all(small, text, ids):
    values = taken(small, text(9, 2)[None], "layers.0.mlp")
    with intervene(small, Patch("layers.0.mlp", cache=values)):
        found = at(small, ids, "layers.0.mlp")
    assert torch.equal(found, values["layers.0.mlp"].expand_as(found))


def test_sequences_are_paired_in_the_order_in_which_they_are_read(small, text, ids):
    """One after the other, or side by side."""
    others = torch.stack([text(9, 2), text(9, 3)])
    values = taken(small, others, "layers.1.mixer")
    with intervene(small, Patch("layers.1.mixer", cache=values)):
        together = logits(small, ids)
    with intervene(small, Patch("layers.1.mixer", cache=values)):
        apart = torch.cat([logits(small, row[None]) for row in ids])
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-5)


def test_more_sequences_than_were_taken(small, text):
    values = taken(small, torch.stack([text(5), text(5, 1)]), "layers.0.mlp")
    message = refused(
        BadArgument, small, torch.stack([text(5, each) for each in range(3)]), Patch("layers.0.mlp", cache=values)
    )
    assert message == (
        f"Patch('layers.0.mlp', cache={values!r}): the model reads sequence 2, but the cache has 2 sequences.\n"
        "Cache one sequence for all, or as many as the model reads, in the same order."
    )


def test_a_text_longer_than_the_one_taken(small, text):
    values = taken(small, text(5)[None], "layers.0.mlp")
    assert refused(BadArgument, small, text(7)[None], Patch("layers.0.mlp", cache=values)) == (
        f"Patch('layers.0.mlp', cache={values!r}): the text has a token at position 6; "
        "the cached text has 5 tokens.\nGive texts of one length, or positions=... that both have."
    )
    with intervene(small, Patch("layers.0.mlp", cache=values, positions=[0, 4])):
        logits(small, text(7)[None])
    assert "a token at position 6" in refused(
        BadArgument, small, text(7)[None], Patch("layers.0.mlp", cache=values, positions=[6])
    )


def test_texts_of_unlike_lengths_in_a_padded_batch(small, text):
    """A row's padding is not a token, and needs no value."""
    ids, mask = torch.stack([text(6), torch.cat([torch.zeros(2, dtype=torch.long), text(4, 1)])]), torch.ones(2, 6)
    mask[1, :2] = 0
    with cache_activations(small, "layers.0.mixer") as values:
        bare = logits(small, ids, attention_mask=mask.long())
    assert values.lengths.tolist() == [6, 4]
    with intervene(small, Patch("layers.0.mixer", cache=values)):
        found = logits(small, ids, attention_mask=mask.long())
    assert torch.equal(found[0], bare[0]) and torch.equal(found[1, 2:], bare[1, 2:])


def test_a_site_that_was_not_taken(small, text, ids):
    values = taken(small, ids, "layers.0.mlp")
    assert refused(UnknownSite, small, ids, Patch("layers.1.mlp", cache=values)) == (
        "This cache has no values at layers.1.mlp, only at layers.0.mlp.\n"
        "Cache the sites that the intervention changes."
    )


@settings(max_examples=20)
@given(data=st.data())
def test_a_patch_after_a_take_changes_nothing(small, data):
    names = [site.name for site in sites(small) if (site.kind, site.word) != ("full_attention", "mixer.key")]
    name = data.draw(st.sampled_from(names))
    tokens = data.draw(st.lists(st.integers(1, 280), min_size=1, max_size=12))
    positions = data.draw(st.none() | st.sets(st.integers(0, len(tokens) - 1), min_size=1))
    ids = torch.tensor(tokens)[None]
    values = taken(small, ids, name)
    bare = logits(small, ids)
    with intervene(small, Patch(name, cache=values, positions=positions)):
        assert torch.equal(logits(small, ids), bare)
