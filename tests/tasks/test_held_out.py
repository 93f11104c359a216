"""The held-out texts ship, are of moderate size, and a wrong name is answered with the nearest."""

from importlib.resources import files

import pytest

import qwenlab as ql


@pytest.mark.parametrize("domain", ql.tasks.DOMAINS)
def test_each_domain_ships_and_is_small(domain):
    assert files("qwenlab.tasks").joinpath("data", f"{domain}.txt").stat().st_size <= 200_000
    texts = ql.tasks.texts(domain)
    assert len(texts) >= 16
    assert all(text.strip() for text in texts)
    assert ql.tasks.texts(domain, 3) == texts[:3]


def test_an_unknown_domain_is_answered_with_the_nearest():
    with pytest.raises(
        ql.errors.BadArgument, match=r"texts\(domain='proze'\): give one of 'code', .*; did you mean 'prose'\?"
    ):
        ql.tasks.texts("proze")


@pytest.mark.parametrize("count", [0, 100_000])
def test_more_texts_than_there_are_is_an_error(count):
    with pytest.raises(ql.errors.BadArgument, match=rf"count={count}.*ask for 1 to"):
        ql.tasks.texts("code", count)
