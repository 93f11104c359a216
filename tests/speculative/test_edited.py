"""Speculative decoding under interventions: exact rollback, or an error."""

import pytest

from qwenlab.errors import CannotRollBack
from qwenlab.interventions import (
    FreezeState,
    NoConv,
    NoKeyRemoval,
    NoSink,
    ResetState,
    SetGate,
    StateDtype,
    Window,
    Zero,
    intervene,
)
from qwenlab.speculative import ReplayRollback, RerunRollback, check_lossless, generate

EDITED = {
    "freeze": FreezeState(24),
    "reset": ResetState(5),
    "no convolution": NoConv(layers=[1]),
    "zero": Zero("layers.1.mixer"),
    "window": Window(6),
    "no sink": NoSink(),
    "gate": SetGate("layers.*.mixer.beta", scale=0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("each", EDITED.values(), ids=EDITED)
@pytest.mark.parametrize("rollback", [ReplayRollback, RerunRollback])
def test_speculative_equals_plain_decoding_under_an_intervention(dense, prompts, each, rollback):
    with intervene(dense.model, each):
        found = check_lossless(dense, prompts(dense), depth=3, max_new_tokens=16, rollback=rollback)
    assert found, found
    assert (found.rounds["accepted"] < 3).any()  # something was rolled back


@pytest.mark.parametrize("each", [NoKeyRemoval(), NoKeyRemoval(layers=[0]), StateDtype("int8")], ids=str)
def test_replay_refuses_interventions_that_it_would_undo(dense, prompts, each):
    fix = r"Read the accepted tokens again instead: rollback=ql\.speculative\.RerunRollback\.$"
    message = rf"runs the plain delta rule over the accepted tokens, and .* changes that rule or its states\.\n{fix}"
    with intervene(dense.model, each):
        with pytest.raises(CannotRollBack, match=message):
            generate(dense, prompts(dense, 1), depth=2, max_new_tokens=4)
        generate(dense, prompts(dense, 1), depth=2, max_new_tokens=4, rollback=RerunRollback)
    generate(dense, prompts(dense, 1), depth=2, max_new_tokens=4)  # the error ends with the block


def test_rerun_is_exact_under_another_rule(dense, prompts):
    with intervene(dense.model, NoKeyRemoval()):
        found = check_lossless(dense, prompts(dense), depth=3, max_new_tokens=16, rollback=RerunRollback)
    assert found, found
