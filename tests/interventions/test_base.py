"""What an edit is: how it is written, what it refuses, and where a value edit acts."""

import re
from dataclasses import FrozenInstanceError, fields
from inspect import isabstract

import pytest
import torch
from hypothesis import given, settings, strategies as st

import qwenlab.interventions
from qwenlab.errors import BadArgument, UnknownSite
from qwenlab.interventions import (
    Edit,
    ValueEdit,
    Values,
    edit,
    identity,
    mask_experts,
    mean,
    noise,
    patch,
    scale,
    set_gate,
    top_k,
    window,
    zero,
)
from tests.interventions.feeding import at, logits, one_of_each, taken


def is_edit(found):
    return isinstance(found, type) and issubclass(found, Edit) and not isabstract(found)


def refused(error, make):
    with pytest.raises(error) as caught:
        make()
    return str(caught.value)


# --- how they are written ---


@pytest.mark.parametrize(("made", "written"), [
    (zero("layers.3.mixer"), "zero('layers.3.mixer')"),
    (zero(pattern="layers.*.mlp", kind="full_attention"), "zero('layers.*.mlp', kind='full_attention')"),
    (zero("layers.0.mixer.heads", heads=(1, 0), positions=range(2)),
     "zero('layers.0.mixer.heads', heads=[0, 1], positions=[0, 1])"),
    (scale("layers.3.mlp", by=0.5), "scale('layers.3.mlp', by=0.5)"),
    (noise("layers.3.mlp", seed=0), "noise('layers.3.mlp')"),
    (noise("layers.3.mlp", seed=2), "noise('layers.3.mlp', seed=2)"),
    (identity([2, 1]), "identity([1, 2])"),
    (mask_experts([3, 0], layers=[1]), "mask_experts([0, 3], layers=[1])"),
    (top_k(1), "top_k(1)"),
])  # fmt: skip
def test_an_edit_reads_as_it_is_written(made, written):
    assert str(made) == written
    assert str(eval(written)) == written


def test_a_list_of_edits_reads_as_it_is_written():
    """In a notebook, and where pytest names its cases."""
    assert repr([window(4, layers=[3]), set_gate("layers.*.mixer.beta", to=0)]) == (
        "[window(4, layers=[3]), set_gate('layers.*.mixer.beta', to=0)]"
    )


def test_values_are_told_apart_by_the_texts_they_are_of(small, text):
    first, second = (taken(small, text(5, seed)[None], "layers.0.mixer") for seed in (0, 1))
    one, other = (str(mean("layers.*.mixer", kind="linear_attention", over=values)) for values in (first, second))
    assert one.startswith("mean('layers.*.mixer', kind='linear_attention', over=Values(tokens:")
    assert one != other
    assert one == str(mean("layers.*.mixer", kind="linear_attention", over=taken(small, text(5)[None], "layers.1.mlp")))
    assert isinstance(first, Values)


def test_an_edit_is_a_description(small):
    made = zero("layers.3.mixer")
    with pytest.raises(FrozenInstanceError):
        made.pattern = "layers.2.mixer"
    assert isinstance(made, Edit) and made == zero("layers.3.mixer") and hash(made) == hash(zero("layers.3.mixer"))


# --- what is said of them ---

PUBLIC = {name: found for name in qwenlab.interventions.__all__ if is_edit(found := getattr(qwenlab.interventions, name))}


@pytest.mark.parametrize("each", PUBLIC.values(), ids=PUBLIC)
def test_a_docstring_says_where_an_edit_acts_and_what_a_cache_keeps(each):
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
    ([], "give whole numbers, 0 or more, at least one; got []."),
    ([0, -1], "give whole numbers, 0 or more, at least one; got [0, -1]."),
    ([1.5], "give whole numbers, 0 or more, at least one; got [1.5]."),
    ([True], "give whole numbers, 0 or more, at least one; got [True]."),
])  # fmt: skip
def test_what_are_no_indices(name, indices, said):
    message = refused(BadArgument, lambda: zero("layers.0.mixer.heads", **{name: indices}))
    assert message == f"zero({name}=...): {said}"


def test_a_keyword_that_no_edit_has():
    with pytest.raises(TypeError, match="unexpected keyword argument 'position'"):
        zero("layers.0.mixer", position=[0])


def test_an_edit_that_there_is_not():
    with pytest.raises(AttributeError, match=r"No qwenlab.interventions attribute zeros"):
        qwenlab.interventions.zeros("layers.0.mixer")


@pytest.mark.parametrize("name", PUBLIC)
def test_no_edit_takes_a_keyword_that_it_does_not_know(name):
    with pytest.raises(TypeError, match=rf"^{name}\.__init__\(\) got an unexpected keyword argument 'layer'"):
        PUBLIC[name](layer=3)


def begin(model, *edits):
    with edit(model, *edits):
        pass


def test_a_site_without_heads(small):
    message = refused(BadArgument, lambda: begin(small, zero("layers.1.mixer", heads=[0])))
    assert message == (
        "zero('layers.1.mixer', heads=[0]): layers.1.mixer has no heads: they have been added up there.\n"
        "Name the site mixer.heads for them."
    )


@pytest.mark.parametrize(("site", "there"), [
    ("layers.0.mixer.heads", 4), ("layers.0.mixer.key", 2), ("layers.1.mixer.heads", 4), ("layers.1.mixer.value", 2),
])  # fmt: skip
def test_a_head_that_is_not_there(small, site, there):
    message = refused(BadArgument, lambda: begin(small, zero(site, heads=[there])))
    assert message == (
        f"zero('{site}', heads=[{there}]): {site} has {there} heads, 0 to {there - 1}; there is no head {there}."
    )


def test_a_pattern_that_names_nothing(small):
    assert "Did you mean layers.1.mixer?" in refused(UnknownSite, lambda: begin(small, zero("layers.1.mixr")))


# --- where they act ---


class ones(ValueEdit):
    """Ones in the place of a value."""

    def new(self, value, prepared, reading):
        return torch.ones_like(value)


@pytest.mark.parametrize("site", ["layers.0.mixer.heads", "layers.0.mixer.beta", "layers.1.mixer.value"])
def test_heads_and_positions_are_those_named_and_no_others(small, text, site):
    ids = torch.stack([text(6), text(6, 1)])
    before = at(small, ids, site)
    with edit(small, ones(site, heads=[1], positions=[0, 4])):
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
    with edit(small, ones("layers.0.mixer", positions=[1, 3])):
        handle = small.model.layers[0].linear_attn.register_forward_hook(lambda m, a, out: found.append(out))
        logits(small, ids, attention_mask=mask)
        handle.remove()
    before, after = found
    before[0, [1, 3]] = 1
    before[1, [3, 5]] = 1
    assert torch.equal(after, before)


@settings(max_examples=15)
@given(data=st.data())
def test_positions_partition_an_edit(small, data):
    """An edit of some positions and one of the others are together the edit of all."""
    ids = torch.arange(1, 8)[None]
    some = data.draw(st.sets(st.integers(0, 6), min_size=1, max_size=6))
    site = data.draw(
        st.sampled_from(["layers.0.mixer", "layers.1.router", "layers.0.mixer.decay", "layers.1.mixer.gate"])
    )
    with edit(small, scale(site, by=0.5)):
        whole = logits(small, ids)
    others = set(range(7)) - some
    with edit(small, scale(site, by=0.5, positions=some), scale(site, by=0.5, positions=others)):
        assert torch.equal(logits(small, ids), whole)


@settings(max_examples=15)
@given(some=st.sets(st.integers(0, 3), min_size=1, max_size=3))
def test_heads_partition_an_edit(small, some):
    ids = torch.arange(1, 8)[None]
    with edit(small, zero("layers.*.mixer.heads")):
        whole = logits(small, ids)
    others = set(range(4)) - some
    with edit(small, zero("layers.*.mixer.heads", heads=some), zero("layers.*.mixer.heads", heads=others)):
        assert torch.equal(logits(small, ids), whole)


def test_zero_of_all_heads_is_zero_of_the_mixer(small, text):
    ids = text(7)[None]
    with edit(small, zero("layers.*.mixer.heads")):
        heads = logits(small, ids)
    with edit(small, zero("layers.*.mixer")):
        assert torch.equal(logits(small, ids), heads)


def test_a_patch_needs_values(small):
    for made, name in ((mean("layers.0.mlp"), "over"), (patch("layers.0.mlp"), "of")):
        message = refused(BadArgument, lambda made=made: begin(small, made))
        of = type(made).__name__
        assert message == (
            f"{of}({name}=...): give values taken by `take`:\n"
            f'with take(model, "layers.0.mlp") as taken: model(...); then {of}("layers.0.mlp", {name}=taken).'
        )
