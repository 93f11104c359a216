"""The cache of open checkpoints across notebooks in one kernel."""

import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st

import qwenlab as ql
from qwenlab.checkpoint.model_cache import ModelCache, digest, state, weighted_sum


@pytest.fixture
def cache():
    cache = ModelCache()
    cache.enabled = True
    cache.start()
    return cache


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


def test_it_is_disabled_by_default(toy):
    cache = ModelCache()
    cache.opened("a", lambda: toy)
    cache.start()
    cache.opened("a", lambda: toy)
    assert cache.loads == 1
    assert cache._models == {}


def test_the_next_notebook_does_not_load_a_cached_checkpoint_again(cache, toy):
    cache.opened("a", lambda: toy)
    assert cache.drop_changed() == []
    cache.start()
    assert cache.opened("a", lambda: pytest.fail("loaded again")) is toy
    assert cache.loads == 0


def test_unused_checkpoints_are_dropped_before_another_is_loaded(cache, toy):
    cache.opened("a", lambda: toy)
    cache.start()
    cached_while_loading = []
    cache.opened("b", lambda: cached_while_loading.append(list(cache._models)) or toy)
    assert cached_while_loading == [[]]
    assert list(cache._models) == ["b"]


def test_checkpoints_that_a_notebook_does_not_use_are_dropped(cache, toy):
    cache.opened("a", lambda: toy)
    cache.start()
    assert cache.drop_changed() == []
    assert cache._models == {}


def test_a_changed_checkpoint_is_dropped_and_named(cache):
    toy = cache.opened("a", lambda: ql.open("toy-dense"))
    toy.model.train()
    assert cache.drop_changed() == ["toy-dense"]
    assert cache._models == {}


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
    assert weighted_sum(changed.view(-1).view(torch.uint8)) != weighted_sum(tensor.view(-1).view(torch.uint8))


def test_the_order_of_values_changes_the_digest():
    tensor = torch.arange(6.0)
    assert digest(tensor) != digest(tensor.flip(0))
    assert weighted_sum(tensor.view(torch.uint8)) != weighted_sum(tensor.flip(0).view(torch.uint8))
