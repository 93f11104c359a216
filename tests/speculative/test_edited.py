"""Drafting on an edited model: rolled back exactly, or refused."""

import pytest

from qwenlab.errors import CannotRollBack
from qwenlab.interventions import (
    edit,
    freeze_state,
    no_conv,
    no_key_removal,
    no_sink,
    reset_state,
    set_gate,
    state_dtype,
    window,
    zero,
)
from qwenlab.speculative import Replay, Rerun, check_lossless, generate

EDITED = {
    "freeze": freeze_state(24),
    "reset": reset_state(5),
    "no convolution": no_conv(layers=[1]),
    "zero": zero("layers.1.mixer"),
    "window": window(6),
    "no sink": no_sink(),
    "gate": set_gate("layers.*.mixer.beta", scale=0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("each", EDITED.values(), ids=EDITED)
@pytest.mark.parametrize("rollback", [Replay, Rerun])
def test_drafted_is_plain_decoding_under_the_same_edit(dense, prompts, each, rollback):
    with edit(dense.model, each):
        found = check_lossless(dense, prompts(dense), depth=3, max_new_tokens=16, rollback=rollback)
    assert found, found
    assert (found.rounds["accepted"] < 3).any()  # something was rolled back


@pytest.mark.parametrize("each", [no_key_removal(), no_key_removal(layers=[0]), state_dtype("int8")], ids=str)
def test_replay_refuses_what_it_would_undo(dense, prompts, each):
    message = (
        r"states are not those that the plain delta rule .*\nRead these tokens again: rollback=ql\.decode\.Rerun\.$"
    )
    with edit(dense.model, each):
        with pytest.raises(CannotRollBack, match=message):
            generate(dense, prompts(dense, 1), depth=2, max_new_tokens=4)
        generate(dense, prompts(dense, 1), depth=2, max_new_tokens=4, rollback=Rerun)
    generate(dense, prompts(dense, 1), depth=2, max_new_tokens=4)  # and it is over with the block


def test_rerun_is_exact_under_another_rule(dense, prompts):
    with edit(dense.model, no_key_removal()):
        found = check_lossless(dense, prompts(dense), depth=3, max_new_tokens=16, rollback=Rerun)
    assert found, found
