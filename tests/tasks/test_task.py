"""A task says what it is, and refuses fields that do not fit one another."""

import pytest

from qwenlab.errors import BadArgument
from qwenlab.tasks import Task

FITS = dict(name="t", tokens=((5, 6, 7), (8, 9)), asked=((1, 2), (1,)))


def test_a_task_prints_its_size():
    assert repr(Task(**FITS)) == "Task('t': 2 sequences of 2 to 3 tokens, 3 asked for)"
    assert repr(Task("one", ((1, 2),), ((1,),), chance=0.1, answers=(2,))).endswith(
        "1 sequences of 2 tokens, 1 asked for, chance 0.1)"
    )


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (dict(tokens=(), asked=()), "0 sequences"),
        (dict(asked=((1,),)), "2 sequences and asked positions of 1"),
        (dict(bytes=(3,)), "2 sequences and bytes of 1"),
        (dict(asked=((0, 1), (1,))), r"sequence 0 has 3 tokens and asks for positions \[0, 1\]"),
        (dict(asked=((1,), (2,))), r"sequence 1 has 2 tokens and asks for positions \[2\]"),
        (dict(asked=((1, 1), (1,))), "give different ones"),
        (dict(asked=((1,), ())), "at least one"),
        (dict(answers=(6, 9)), "sequence 0 asks for a token that is not among its answers"),
        (dict(chance=1.5), "chance=1.5 is not a probability"),
        (dict(chance=float("nan")), "chance=nan is not a probability"),
    ],
)
def test_fields_that_do_not_fit_are_refused(wrong, why):
    with pytest.raises(BadArgument, match=f"Task 't': .*{why}"):
        Task(**(FITS | wrong))
