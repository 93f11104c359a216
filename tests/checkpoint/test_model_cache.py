"""Checkpoints that stay open from notebook to notebook."""

import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st

import qwenlab as ql
from qwenlab.checkpoint.model_cache import ModelCache, digest, place_sum, state


@pytest.fixture
def kept():
    kept = ModelCache()
    kept.keep()
    kept.start()
    return kept


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


def test_keeps_nothing_unless_told_to(toy):
    kept = ModelCache()
    kept.opened("a", lambda: toy)
    kept.start()
    kept.opened("a", lambda: toy)
    assert kept.loads == 1
    assert kept._held == {}


def test_what_the_next_notebook_asks_for_is_not_read_again(kept, toy):
    kept.opened("a", lambda: toy)
    assert kept.check() == []
    kept.start()
    assert kept.opened("a", lambda: pytest.fail("read again")) is toy
    assert kept.loads == 0


def test_what_nobody_asked_for_goes_before_another_is_read(kept, toy):
    kept.opened("a", lambda: toy)
    kept.start()
    held_while_reading = []
    kept.opened("b", lambda: held_while_reading.append(list(kept._held)) or toy)
    assert held_while_reading == [[]]
    assert list(kept._held) == ["b"]


def test_what_one_notebook_left_out_is_let_go(kept, toy):
    kept.opened("a", lambda: toy)
    kept.start()
    kept.check()
    assert kept._held == {}


def test_state_is_the_same_for_as_long_as_nothing_changes(toy):
    before = state(toy)
    with torch.no_grad(), ql.watch(toy, *ql.probes.defaults(toy)):
        toy.model(torch.ones(1, 5, dtype=torch.long))
    assert state(toy) == before


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("model.layers.3.self_attn", "scaling", 1.0),
        ("model.layers.0.input_layernorm", "eps", 1.0),
        ("model.layers.0.linear_attn", "forward", lambda *args, **kwargs: None),
        ("model.layers.0.mlp", "act_fn", torch.nn.Identity()),
        ("lm_head", "note", "mine"),
    ],
)
def test_an_attribute_of_a_module_is_part_of_the_state(path, name, value):
    checkpoint = ql.open("toy-dense")
    before = state(checkpoint)
    setattr(checkpoint.model.get_submodule(path), name, value)
    assert state(checkpoint) != before


@settings(max_examples=30)
@given(place=st.integers(0, 1199), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int32]))
def test_one_changed_value_changes_the_digest(place, dtype):
    tensor = torch.arange(1200).to(dtype).reshape(30, 40)
    changed = copy.deepcopy(tensor)
    changed.view(-1)[place] += 8
    assert digest(changed) != digest(tensor)
    assert place_sum(changed.view(-1).view(torch.uint8)) != place_sum(tensor.view(-1).view(torch.uint8))


def test_what_stands_elsewhere_has_another_digest():
    tensor = torch.arange(6.0)
    assert digest(tensor) != digest(tensor.flip(0))
    assert place_sum(tensor.view(torch.uint8)) != place_sum(tensor.flip(0).view(torch.uint8))
