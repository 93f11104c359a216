"""Interventions: how they are written, what they refuse, and where a value intervention acts."""

import re
from dataclasses import FrozenInstanceError, fields
from inspect import isabstract

import pytest
import torch
from hypothesis import given, settings, strategies as st

import qwenlab.interventions
from qwenlab.errors import BadArgument, UnknownSite
from qwenlab.interventions import (
    ActivationCache,
    Identity,
    Intervention,
    MaskExperts,
    Mean,
    Noise,
    Patch,
    Scale,
    SetGate,
    TopK,
    ValueIntervention,
    Window,
    Zero,
    intervene,
)
from tests.interventions.feeding import at, logits, one_of_each, taken


def is_intervention(found):
    return isinstance(found, type) and issubclass(found, Intervention) and not isabstract(found)


def refused(error, make):
    with pytest.raises(error) as caught:
        make()
    return str(caught.value)


# --- how they are written ---


@pytest.mark.parametrize(("made", "written"), [
    (Zero("layers.3.mixer"), "Zero('layers.3.mixer')"),
    (Zero(pattern="layers.*.mlp", kind="full_attention"), "Zero('layers.*.mlp', kind='full_attention')"),
    (Zero("layers.0.mixer.heads", heads=(1, 0), positions=range(2)),
     "Zero('layers.0.mixer.heads', heads=[0, 1], positions=[0, 1])"),
    (Scale("layers.3.mlp", by=0.5), "Scale('layers.3.mlp', by=0.5)"),
    (Noise("layers.3.mlp", seed=0), "Noise('layers.3.mlp')"),
    (Noise("layers.3.mlp", seed=2), "Noise('layers.3.mlp', seed=2)"),
    (Identity([2, 1]), "Identity([1, 2])"),
    (MaskExperts([3, 0], layers=[1]), "MaskExperts([0, 3], layers=[1])"),
    (TopK(1), "TopK(1)"),
])  # fmt: skip
def test_an_intervention_reads_as_it_is_written(made, written):
    assert str(made) == written
    assert str(eval(written)) == written


def test_a_list_of_interventions_reads_as_it_is_written():
    """In a notebook, and where pytest names its cases."""
    assert repr([Window(4, layers=[3]), SetGate("layers.*.mixer.beta", to=0)]) == (
        "[Window(4, layers=[3]), SetGate('layers.*.mixer.beta', to=0)]"
    )


def test_values_are_told_apart_by_the_texts_they_are_of(small, text):
    first, second = (taken(small, text(5, seed)[None], "layers.0.mixer") for seed in (0, 1))
    one, other = (str(Mean("layers.*.mixer", kind="linear_attention", cache=values)) for values in (first, second))
    assert one.startswith("Mean('layers.*.mixer', kind='linear_attention', cache=ActivationCache(tokens:")
    assert one != other
    assert one == str(
        Mean("layers.*.mixer", kind="linear_attention", cache=taken(small, text(5)[None], "layers.1.mlp"))
    )
    assert isinstance(first, ActivationCache)


def test_an_intervention_is_a_description(small):
    made = Zero("layers.3.mixer")
    with pytest.raises(FrozenInstanceError):
        made.pattern = "layers.2.mixer"
    assert (
        isinstance(made, Intervention) and made == Zero("layers.3.mixer") and hash(made) == hash(Zero("layers.3.mixer"))
    )


# --- docstrings ---

PACKAGE = qwenlab.interventions
PUBLIC = {name: found for name in PACKAGE.__all__ if is_intervention(found := getattr(PACKAGE, name))}


@pytest.mark.parametrize("each", PUBLIC.values(), ids=PUBLIC)
def test_a_docstring_says_where_an_intervention_acts_and_what_a_cache_keeps(each):
    said = each.__doc__
    assert "site" in said.lower() or "pattern" in said
    assert "cache" in said.lower()
    for field in fields(each):
        assert re.search(rf"\b{field.name}\b", said), field.name


def test_each_is_tested_for_what_it_leaves_behind(small, text):
    assert {type(each).__name__ for each in one_of_each(small, text)} == PUBLIC.keys()


# --- what they refuse ---


@pytest.mark.parametrize("name", ["heads", "positions"])
@pytest.mark.parametrize(("indices", "said"), [
    (3, "3 is one number; give a list of them, [3]."),
    ([], "give at least one integer, each 0 or more; got []."),
    ([0, -1], "give at least one integer, each 0 or more; got [0, -1]."),
    ([1.5], "give at least one integer, each 0 or more; got [1.5]."),
    ([True], "give at least one integer, each 0 or more; got [True]."),
])  # fmt: skip
def test_what_are_no_indices(name, indices, said):
    message = refused(BadArgument, lambda: Zero("layers.0.mixer.heads", **{name: indices}))
    assert message == f"Zero({name}=...): {said}"


def test_a_keyword_that_no_intervention_has():
    with pytest.raises(TypeError, match="unexpected keyword argument 'position'"):
        Zero("layers.0.mixer", position=[0])


def test_an_intervention_that_there_is_not():
    with pytest.raises(AttributeError, match=r"No qwenlab.interventions attribute zeros"):
        qwenlab.interventions.zeros("layers.0.mixer")


@pytest.mark.parametrize("name", PUBLIC)
def test_no_intervention_takes_a_keyword_that_it_does_not_know(name):
    with pytest.raises(TypeError, match=rf"^{name}\.__init__\(\) got an unexpected keyword argument 'layer'"):
        PUBLIC[name](layer=3)


def begin(model, *interventions):
    with intervene(model, *interventions):
        pass


def test_a_site_without_heads(small):
    message = refused(BadArgument, lambda: begin(small, Zero("layers.1.mixer", heads=[0])))
    assert message == (
        "Zero('layers.1.mixer', heads=[0]): layers.1.mixer has no heads: it is the sum over heads.\n"
        "Name the site mixer.heads instead."
    )


@pytest.mark.parametrize(("site", "count"), [
    ("layers.0.mixer.heads", 4), ("layers.0.mixer.key", 2), ("layers.1.mixer.heads", 4), ("layers.1.mixer.value", 2),
])  # fmt: skip
def test_a_head_that_is_not_there(small, site, count):
    message = refused(BadArgument, lambda: begin(small, Zero(site, heads=[count])))
    assert message == (f"Zero('{site}', heads=[{count}]): {site} has heads 0 to {count - 1}; got head {count}.")


def test_a_pattern_that_names_nothing(small):
    assert "Did you mean layers.1.mixer?" in refused(UnknownSite, lambda: begin(small, Zero("layers.1.mixr")))


# --- where they act ---


class ones(ValueIntervention):
    """Ones instead of the value."""

    def new(self, value, prepared, tokens):
        return torch.ones_like(value)


@pytest.mark.parametrize("site", ["layers.0.mixer.heads", "layers.0.mixer.beta", "layers.1.mixer.value"])
def test_heads_and_positions_are_those_named_and_no_others(small, text, site):
    ids = torch.stack([text(6), text(6, 1)])
    before = at(small, ids, site)
    with intervene(small, ones(site, heads=[1], positions=[0, 4])):
        after = at(small, ids, site)
    expected = before.clone()
    expected[:, [0, 4], 1] = 1
    assert torch.equal(after, expected)


def test_positions_are_those_in_the_text_padding_not_counted(small, text):
    ids = torch.stack([text(6), torch.cat([text(2, 9), text(4, 1)])])
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    found = []
    handle = small.model.layers[0].linear_attn.out_proj.register_forward_hook(lambda m, a, out: found.append(out))
    logits(small, ids, attention_mask=mask)
    handle.remove()
    with intervene(small, ones("layers.0.mixer", positions=[1, 3])):
        handle = small.model.layers[0].linear_attn.register_forward_hook(lambda m, a, out: found.append(out))
        logits(small, ids, attention_mask=mask)
        handle.remove()
    before, after = found
    before[0, [1, 3]] = 1
    before[1, [3, 5]] = 1
    assert torch.equal(after, before)


@settings(max_examples=15)
@given(data=st.data())
def test_positions_partition_an_intervention(small, data):
    """An intervention of some positions and one of the others are together the intervention of all."""
    ids = torch.arange(1, 8)[None]
    some = data.draw(st.sets(st.integers(0, 6), min_size=1, max_size=6))
    site = data.draw(
        st.sampled_from(["layers.0.mixer", "layers.1.router", "layers.0.mixer.decay", "layers.1.mixer.gate"])
    )
    with intervene(small, Scale(site, by=0.5)):
        whole = logits(small, ids)
    others = set(range(7)) - some
    with intervene(small, Scale(site, by=0.5, positions=some), Scale(site, by=0.5, positions=others)):
        assert torch.equal(logits(small, ids), whole)


@settings(max_examples=15)
@given(some=st.sets(st.integers(0, 3), min_size=1, max_size=3))
def test_heads_partition_an_intervention(small, some):
    ids = torch.arange(1, 8)[None]
    with intervene(small, Zero("layers.*.mixer.heads")):
        whole = logits(small, ids)
    others = set(range(4)) - some
    with intervene(small, Zero("layers.*.mixer.heads", heads=some), Zero("layers.*.mixer.heads", heads=others)):
        assert torch.equal(logits(small, ids), whole)


def test_zero_of_all_heads_is_zero_of_the_mixer(small, text):
    ids = text(7)[None]
    with intervene(small, Zero("layers.*.mixer.heads")):
        heads = logits(small, ids)
    with intervene(small, Zero("layers.*.mixer")):
        assert torch.equal(logits(small, ids), heads)


def test_a_patch_needs_values(small):
    for made in (Mean("layers.0.mlp"), Patch("layers.0.mlp")):
        message = refused(BadArgument, lambda made=made: begin(small, made))
        of = type(made).__name__
        assert message == (
            f"{of}(cache=...): give an ActivationCache:\n"
            'with cache_activations(model, "layers.0.mlp") as cache: model(...); '
            f'then {of}("layers.0.mlp", cache=cache).'
        )
