"""Calls of a model one by one and layer by layer, and what both give."""

from functools import partial

import torch
import xarray as xr

from qwenlab.capture.layer_major import run_layer_major
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.probes import watch

LENGTHS = (6, 13, 9, 24)


def reads(model, texts, **given):
    return [partial(model, **inputs, use_cache=False, **given) for inputs in texts]


def together(model, calls, **options):
    return list(run_layer_major(decoder_of(model), calls, **options))


def one_by_one(model, calls):
    return [call() for call in calls]


def assert_same_outputs(first, second):
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.logits, other.logits)
        assert len(one.hidden_states or ()) == len(other.hidden_states or ())
        assert all(map(torch.equal, one.hidden_states or (), other.hidden_states or ()))


def assert_identical(first, second):
    """Two recordings, but for times."""
    assert list(first) == list(second)
    for node in set(first) - {"timing"}:
        xr.testing.assert_identical(first[node], second[node])
    for name in ("prompts_hash", "interventions", "labels"):
        assert first.attrs[name] == second.attrs[name]


def recorded(model, texts, run, *watched):
    """Outputs and recordings of each group of probes, with a label for each text."""
    with watch(model, *watched[0]) as outer, watch(model, *watched[-1]) as inner:

        def call(number, inputs):
            with outer.label("ab"[number % 2]):
                return model(**inputs, use_cache=False, output_hidden_states=True)

        found = run(model, [partial(call, number, inputs) for number, inputs in enumerate(texts)])
        model(**texts[0])  # without a label again
    return found, outer.recording(), inner.recording()


def assert_recordings_are_those_of_one_by_one(model, texts, probes_of, **options):
    expected = recorded(model, texts, one_by_one, *probes_of())
    found = recorded(model, texts, partial(together, **options), *probes_of())
    assert_same_outputs(found[0], expected[0])
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert_identical(one, other)


def hits(session):
    return {name: [(each.where, each.reached, each.acted) for each in counts] for name, counts in session.hits.items()}
