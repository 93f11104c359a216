"""Drafting on an edited model: rolled back exactly, or refused."""

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
def test_drafted_is_plain_decoding_under_the_same_edit(dense, prompts, each, rollback):
    with intervene(dense.model, each):
        found = check_lossless(dense, prompts(dense), depth=3, max_new_tokens=16, rollback=rollback)
    assert found, found
    assert (found.rounds["accepted"] < 3).any()  # something was rolled back


@pytest.mark.parametrize("each", [NoKeyRemoval(), NoKeyRemoval(layers=[0]), StateDtype("int8")], ids=str)
def test_replay_refuses_what_it_would_undo(dense, prompts, each):
    mend = r"Read these tokens again: rollback=ql\.speculative\.RerunRollback\.$"
    message = rf"states are not those that the plain delta rule .*\n{mend}"
    with intervene(dense.model, each):
        with pytest.raises(CannotRollBack, match=message):
            generate(dense, prompts(dense, 1), depth=2, max_new_tokens=4)
        generate(dense, prompts(dense, 1), depth=2, max_new_tokens=4, rollback=RerunRollback)
    generate(dense, prompts(dense, 1), depth=2, max_new_tokens=4)  # and it is over with the block


def test_rerun_is_exact_under_another_rule(dense, prompts):
    with intervene(dense.model, NoKeyRemoval()):
        found = check_lossless(dense, prompts(dense), depth=3, max_new_tokens=16, rollback=RerunRollback)
    assert found, found
