"""What cannot run layer by layer, and errors in the middle: all calls end, and nothing is left behind."""

import gc
from contextlib import contextmanager
from functools import partial

import greenlet
import pytest
import torch

from qwenlab.capture.layer_major import Branch, run_layer_major
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.errors import BadArgument, CannotRunLayerMajor
from qwenlab.interventions import Zero, intervene
from qwenlab.probes import Residual, watch
from tests.capture.in_turns import (
    assert_same_outputs,
    hits,
    one_by_one,
    reads,
    together,
)
from tests.probes.traces import traces


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def left_behind(small, texts):
    """Whether a run leaves hooks, greenlets or other results behind."""
    expected, before = one_by_one(small, reads(small, texts)), traces(small)

    def check():
        assert traces(small) == before
        assert_same_outputs(one_by_one(small, reads(small, texts)), expected)
        assert_same_outputs(together(small, reads(small, texts)), expected)

    return check


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["layer", "call", "load", "accumulate"])
def test_an_error_ends_all_calls(small, texts, left_behind, error, where):
    ended, runs = [], []

    class Failing(Residual):
        def accumulate(self, *args):
            super().accumulate(*args)
            if where == "accumulate":
                fail()

    def fail(*_):
        runs.append(1)
        if len(runs) >= 3:
            raise error("third")

    def call(number, inputs):
        try:
            with intervene(small, Zero("layers.1.mixer")):
                found = small(**inputs, use_cache=False)
                if where == "call":
                    fail()
                return found
        finally:
            ended.append(number)

    @contextmanager
    def load(layer):
        if where == "load":
            runs.append(1)
            fail()
        yield

    hook = small.model.layers[1].mlp.register_forward_hook(fail if where == "layer" else lambda *_: None)
    session, session_2 = watch(small, Failing(every=1)), intervene(small, Zero("layers.0.mlp"))
    with pytest.raises(error, match="third"), session, session_2:
        together(small, [partial(call, *each) for each in enumerate(texts)], layers=load, memory=0)
    hook.remove()
    assert sorted(ended) == list(range(len(texts)))
    assert hits(session_2)["Zero('layers.0.mlp')"] == [
        ("layers.0.mlp", 3, 3) if where == "call" else ("layers.0.mlp", 0, 0)
    ]
    left_behind()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, for looking at all objects
def test_closing_the_iterator_ends_all_calls(small, texts, left_behind):
    found = run_layer_major(decoder_of(small), reads(small, texts))
    next(found)
    greenlets = [each for each in gc.get_objects() if type(each) is greenlet.greenlet]
    assert sum(map(bool, greenlets)) == len(texts)  # those that wait, and the main one
    found.close()
    assert [each for each in greenlets if each] == [greenlet.getcurrent()]
    left_behind()


def test_a_call_that_catches_its_end_cannot_go_on(small, texts, left_behind):
    def stubborn():
        try:
            return small(**texts[0], use_cache=False)
        except BaseException:
            return small(**texts[0], use_cache=False)

    def fails():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        together(small, [stubborn, fails])
    left_behind()


def cached(small, texts):
    cache = small(**texts[0], use_cache=True).past_key_values
    return lambda: small(texts[0]["input_ids"][:, :1], past_key_values=cache)


def twice(small, texts):
    return lambda: [small(**texts[0], use_cache=False) for _ in range(2)]


def generating(small, texts):
    return lambda: small.generate(**texts[0], max_new_tokens=2)


def with_gradients(small, texts):
    return torch.enable_grad()(reads(small, texts)[0])


def with_another_text(small, texts):
    return Branch(reads(small, texts)[1], 0, 1)


def with_a_cache(small, texts):
    return Branch(partial(small, **texts[0], use_cache=True), 0, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (cached, "Call 1 of run_layer_major continues a cache"),
        (twice, "runs a second forward pass"),
        (generating, "Call 1 of run_layer_major calls generate"),
        (with_gradients, "Gradients, inference mode or autocast changed"),
        (with_another_text, r"begins with a hidden state \[1, 6, 32\] of another call, and reads a batch of \[1, 13\]"),
        (with_a_cache, "has a cache, which would lack the layers below"),
    ],
)
def test_what_cannot_take_turns_is_an_error(small, texts, left_behind, make, message):
    call = make(small, texts)
    with pytest.raises(CannotRunLayerMajor, match=message):
        together(small, [reads(small, texts)[0], call])
    left_behind()


def test_a_branch_of_a_call_without_a_pass_is_an_error(small, texts, left_behind):
    with pytest.raises(CannotRunLayerMajor, match="Call 1 of run_layer_major never began"):
        together(small, [lambda: None, Branch(reads(small, texts)[0], 0, 1)])
    left_behind()


def test_a_branch_is_not_followed_from_outside(small, texts, left_behind):
    clean, other = reads(small, texts)[:1] * 2
    for block in (watch(small, Residual()), intervene(small, Zero("layers.1.mlp"))):
        with pytest.raises(BadArgument, match="A Branch runs the layers from 1 on"), block:
            together(small, [clean, Branch(other, 0, 1)])
    left_behind()


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ([], "got no calls"),
        ([3], "Call 0 of run_layer_major is a int"),
        ([print, Branch(print, 2, 1)], r"Branch\(of=2\)"),
        ([print, Branch(print, 0, 2)], r"Branch\(layer=2\)"),
        ([print, Branch(print, 0, 1), Branch(print, 1, 1)], "a branch of a branch"),
    ],
)
def test_calls_are_checked(small, calls, message):
    with pytest.raises(BadArgument, match=message):
        together(small, calls)


def test_a_run_needs_no_gradients_and_no_run_around_it(small, texts):
    with torch.enable_grad(), pytest.raises(BadArgument, match="keeps no graph"):
        together(small, reads(small, texts))
    with pytest.raises(BadArgument, match="inside a call of another one"):
        together(small, [lambda: together(small, reads(small, texts))])
    with pytest.raises(BadArgument, match="memory=-1"):
        together(small, reads(small, texts), memory=-1)
