"""Arguments that cannot be meant are rejected, and the message says what to give."""

import math

import pytest

from qwenlab.arguments import choice, integer, probability
from qwenlab.errors import BadArgument


def test_what_fits_is_returned():
    assert integer("f", "n", 3, least=3, most=3) == 3
    assert choice("f", "kind", "moe", ["dense", "moe"]) == "moe"
    assert [probability("f", "p", p) for p in (0, 0.25, 1)] == [0.0, 0.25, 1.0]


@pytest.mark.parametrize(("check", "message"), [
    (lambda: integer("TopK", "n", 0, least=1, unit="x"), "TopK(n=0): give an integer number of x, 1 or more."),
    (lambda: integer("f", "n", True), "f(n=True): give an integer, 0 or more."),
    (lambda: integer("f", "n", 1.0), "f(n=1.0): give an integer, 0 or more."),
    (lambda: integer("f", "n", 9, least=1, most=8), "f(n=9): give an integer, from 1 to 8."),
    (lambda: choice("f", "a", "mo", ["dense", "moe"]), "f(a='mo'): give one of 'dense', 'moe'; did you mean 'moe'?"),
    (lambda: choice("f", "bits", True, [1, 2]), "f(bits=True): give one of 1, 2."),
    (lambda: probability("f", "p", 1.5), "f(p=1.5): give a number from 0 to 1."),
    (lambda: probability("f", "p", math.nan), "f(p=nan): give a number from 0 to 1."),
    (lambda: probability("f", "p", "0.5"), "f(p='0.5'): give a number from 0 to 1."),
])  # fmt: skip
def test_what_does_not_is_named(check, message):
    with pytest.raises(BadArgument) as caught:
        check()
    assert str(caught.value) == message
