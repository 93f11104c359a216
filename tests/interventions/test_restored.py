"""After every block the model is unchanged, bit for bit, however blocks nest and however they end."""

import contextlib

import pytest
import torch
from hypothesis import assume, given, settings, strategies as st

from qwenlab.interventions import Zero, intervene
from qwenlab.probes import Residual, watch
from tests.interventions.feeding import logits, one_of_each
from tests.probes.traces import traces

ENDINGS = (None, ZeroDivisionError, KeyboardInterrupt, MemoryError)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(1, 280, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def every(small, ids):
    """One intervention of each kind, and two more at a site of others."""

    def text(tokens, seed=0):
        return torch.randint(1, 280, (tokens,), generator=torch.Generator().manual_seed(seed))

    return (*one_of_each(small, text), Zero("layers.0.mixer", positions=[1]), Zero("layers.0.mixer.heads", heads=[0]))


class Plain:
    """What the plain model makes of the ids, and what it is hung with."""

    def __init__(self, model, ids):
        self.made, self.hung, self.ids = passes(model, ids), traces(model), ids

    def is_again(self, model):
        return traces(model) == self.hung and torch.equal(passes(model, self.ids), self.made)


@pytest.fixture(scope="module")
def plain(small, ids):
    return Plain(small, ids)


@torch.no_grad()
def passes(model, ids):
    """Logits of a whole pass, of one through a cache, and of a step after that."""
    cached = model(ids[:, :5], use_cache=True)
    stepped = model(ids[:, 5:6], past_key_values=cached.past_key_values, use_cache=True)
    return torch.cat([each.flatten() for each in (logits(model, ids), cached.logits, stepped.logits)])


def test_each_intervention_alone(small, ids, every, plain):
    def written():
        return small.generate(ids, max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)

    before = written()
    for each in every:
        with intervene(small, each):
            assert not torch.equal(passes(small, ids), plain.made), each
            written()
        assert plain.is_again(small), each
        assert torch.equal(written(), before), each


def test_all_at_once(small, ids, every, plain):
    """But the layer left out, which hides the others, and the experts forced, of which there are two of one."""
    interventions = [each for each in every if type(each).__name__ not in ("Identity", "ForceExperts")]
    with intervene(small, *interventions):
        passes(small, ids)
    assert plain.is_again(small)


@settings(max_examples=30)
@given(data=st.data())
def test_blocks_in_one_another_however_they_end(small, ids, every, plain, data):
    """Up to three blocks of up to three interventions, watches between them; ended in a layer, in a block, or well."""
    known = {str(each): each for each in every if type(each).__name__ != "ForceExperts"}
    groups = data.draw(
        st.lists(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=3, unique=True), min_size=1, max_size=3)
    )
    assume(sum("NoKeyRemoval()" in names for names in groups) < 2)  # the second is refused
    watched = data.draw(st.sets(st.integers(0, 2)))
    ending, layer = data.draw(st.sampled_from(ENDINGS)), data.draw(st.sampled_from([None, 0, 1]))

    def fail(*_):
        raise ending

    with contextlib.suppress(*filter(None, [ending])), contextlib.ExitStack() as blocks:
        for number, names in enumerate(groups):
            if number in watched:
                blocks.enter_context(watch(small, Residual()))
            blocks.enter_context(intervene(small, *(known[name] for name in names)))
        passes(small, ids)
        if ending is not None and layer is not None:
            handle = small.model.layers[layer].mlp.register_forward_hook(fail)
            blocks.callback(handle.remove)
            logits(small, ids)
        elif ending is not None:
            fail()
    assert plain.is_again(small)


@pytest.mark.parametrize("error", ENDINGS[1:])
def test_interrupted_in_an_intervention_itself(small, ids, plain, error):
    """The intervention at work raises, in the middle of a layer, before and behind others at its place."""

    class failing(Zero):
        def new(self, value, prepared, reading):
            raise error

    for site in ("layers.0.mixer", "layers.0.mixer.beta", "layers.1.mixer.query", "layers.1.router"):
        with pytest.raises(error), intervene(small, Zero(site), failing(site), Zero(site, positions=[0])):
            logits(small, ids)
        assert plain.is_again(small)
