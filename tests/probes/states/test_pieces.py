"""Long texts of many chunks: the probes of states say the same of pieces as of the whole."""

import pytest

from qwenlab.probes import DeltaState, Retention
from tests.probes.compare import assert_same
from tests.probes.feeding import in_pieces, one_by_one, recorded


def probes():
    return DeltaState(every=32), Retention(every=32, pairs=2)


@pytest.fixture(scope="module")
def texts(text):
    return [text(300, seed=1), text(141, seed=2)]


@pytest.fixture(scope="module")
def whole(small, texts):
    return recorded(small, one_by_one(texts), *probes())


@pytest.mark.parametrize("widths", [(300,), (130, 1, 65), (64, 64, 128), (7, 150)])
def test_long_texts_and_many_chunks(small, texts, whole, widths):
    assert_same(recorded(small, in_pieces(texts, widths), *probes()), whole)
