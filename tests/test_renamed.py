"""Old public names: each still finds the thing under its new name, and names it in a warning."""

import re

import pytest

import qwenlab as ql
from qwenlab.renamed import OLD, ROOMS


def get(name):
    found = ql
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(("old", "new"), OLD.items())
def test_an_old_name_is_the_new_thing(old, new):
    with pytest.warns(DeprecationWarning, match=re.escape(f"qwenlab.{old} is now qwenlab.{new}.")):
        assert get(old) is get(new)


@pytest.mark.parametrize(("old", "new"), ROOMS.items())
def test_an_old_room_finds_what_kept_its_name(old, new):
    name = next(name for name in getattr(ql, new).__all__ if f"{old}.{name}" not in OLD)
    with pytest.warns(DeprecationWarning, match=re.escape(f"qwenlab.{old}.{name} is now qwenlab.{new}.{name}.")):
        assert getattr(getattr(ql, old), name) is getattr(getattr(ql, new), name)


def test_a_name_that_never_was_is_an_error():
    with pytest.raises(AttributeError, match="zeros"):
        _ = ql.probe.zeros
    with pytest.raises(AttributeError, match="probing"):
        _ = ql.probing
