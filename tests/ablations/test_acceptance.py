"""Acceptance under ablations, against the score inside a block of interventions and a score computed by hand."""

import json
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

import qwenlab as ql
from qwenlab.ablations.acceptance import acceptance
from qwenlab.ablations.units import units
from qwenlab.errors import BadArgument, NoMtpHead
from qwenlab.interventions.session import intervene
from qwenlab.interventions.values import Zero
from qwenlab.speculative.scores import acceptance_score
from qwenlab.testing.checkpoints import tiny_checkpoint


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


def test_it_is_the_score_inside_an_intervention(toy):
    texts = [text[:120] for text in ql.tasks.texts("code", 3)]
    how = dict(depth=2, labels=["a", "b", "b"])
    ablations = [*units(toy, layers=[0, 3]), *units(toy, "kind")]
    found = acceptance(toy, ablations, texts, progress=False, **how)
    assert found["acceptance_length"].dims == ("ablation", "text")
    clean = acceptance_score(toy, texts, **how)["acceptance_length"].values
    np.testing.assert_array_equal(found["clean_acceptance_length"], clean)
    for place, name in enumerate(("layers.0.mixer", "layers.3.mixer")):
        with intervene(toy, Zero(name)):
            by_hand = acceptance_score(toy, texts, **how)["acceptance_length"].values
        np.testing.assert_array_equal(found["acceptance_length"][place], by_hand)
    assert not np.array_equal(found["acceptance_length"][2], clean)
    assert found["ablation"].values.tolist() == ["mixer 0", "mixer 3", "all linear_attention", "all full_attention"]
    assert found["label"].values.tolist() == ["a", "b", "b"]
    assert (found["acceptance_length"].attrs["units"], found.attrs["depth"], found.attrs["text"]) == (
        *("token", 2, "teacher_forced"),
    )
    tokens = [len(toy.tokenizer(text)["input_ids"]) for text in texts]
    assert (found.attrs["checkpoint"], found.attrs["checkpoint_hash"]) == ("toy-dense", toy.facts.hash)
    assert json.loads(found.attrs["labels"]) == {"a": tokens[0], "b": tokens[1] + tokens[2]}


def test_interventions_under_two_names_are_scored_once(toy):
    """A control often has the same interventions as a unit."""
    (unit,) = units(toy, layers=[0])
    control = replace(unit, name="control 0 of another", control_of="another")
    texts, calls = ["def f(x):\n    return x"], []
    with ExitStack() as stack:
        counted = toy.model.get_decoder().register_forward_pre_hook(lambda *args: calls.append(1))
        stack.callback(counted.remove)
        acceptance(toy, [unit], texts, progress=False, depth=1)
        once = len(calls)
        both = acceptance(toy, [unit, control], texts, progress=False, depth=1)
    assert once > 0
    assert len(calls) == 2 * once
    np.testing.assert_array_equal(*both["acceptance_length"].values)
    assert both["control_of"].values.tolist() == ["", "another"]


def test_what_it_refuses(toy, tmp_path):
    with pytest.raises(BadArgument, match=r"acceptance\(checkpoint, ablations, texts\): give a list of at least one"):
        acceptance(toy, [], ["text"])
    headless = ql.open(tiny_checkpoint(tmp_path, mtp=None))
    with pytest.raises(NoMtpHead):
        acceptance(headless, units(headless), ["some text"], progress=False)
