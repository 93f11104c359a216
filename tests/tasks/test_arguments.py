"""What several tasks take is refused alike, in the name of the function it was given to."""

import pytest

from qwenlab.errors import BadArgument
from qwenlab.tasks.arguments import list_of_texts, one_per_text, whole


@pytest.mark.parametrize("value", [0, -3, 2.0, True, "4", None])
def test_what_is_no_whole_number(value):
    with pytest.raises(BadArgument, match=r"mqar\(pairs=.*\): give an integer, 1 or more"):
        whole("mqar", pairs=value)


def test_the_least_is_allowed():
    whole("needle", least=7, length=7)
    with pytest.raises(BadArgument, match=r"needle\(length=6\): give an integer, 7 or more"):
        whole("needle", least=7, length=6)


@pytest.mark.parametrize("texts", [[], "one string", None])
def test_what_is_no_list_of_texts(texts):
    with pytest.raises(BadArgument, match=r"losses\(checkpoint, texts\): give a list of at least one text"):
        list_of_texts("losses", texts)


def test_a_text_that_is_no_string_is_one_per_text():
    with pytest.raises(BadArgument, match="text 1 is list, not a string"):
        list_of_texts("losses", ["a", [1, 2]])


def test_labels_are_one_a_text():
    assert one_per_text("losses", None, 2) == ["", ""]
    assert one_per_text("losses", ("code", "prose"), 2) == ["code", "prose"]
    for labels in (["code"], "ab"):
        with pytest.raises(BadArgument, match="give a name for each of the 2 texts"):
            one_per_text("losses", labels, 2)
