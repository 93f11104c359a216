"""The sample of tokens that probes measure: evenly spread, and independent of batching."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qwenlab.capture.sampled_steps import drawn
from qwenlab.probes import DeltaNet, Residual
from tests.probes.compare import assert_same
from tests.probes.feeding import in_pieces, one_by_one, recorded


@given(every=st.integers(1, 64), first=st.integers(0, 10**6))
def test_one_token_of_every_block(every, first):
    blocks = np.arange(first, first + 50)
    assert (drawn(blocks, every) // every == blocks).all()


@pytest.mark.parametrize("every", [2, 4, 8, 16])
@pytest.mark.parametrize("period", range(2, 17))
def test_no_period_is_met_in_one_phase(every, period):
    """Every n-th token of a text with period n would be in the same phase each time; these meet all evenly."""
    phases = np.bincount(drawn(np.arange(4000), every) % period, minlength=period) / 4000
    assert np.abs(phases - 1 / period).max() < 0.25 / period


@pytest.mark.parametrize("every", [2, 8, 64])
def test_short_texts_are_not_met_at_their_beginning_alone(every):
    """Of texts of one block, one token each: places spread evenly, a quarter of them in each quarter."""
    places = drawn(0, every, np.arange(400))
    assert places[0] == every // 2
    share = np.histogram(places, bins=min(4, every), range=(0, every))[0] / 400
    assert np.abs(share - share.mean()).max() < 0.02


def test_all_tokens_where_none_is_left_out():
    assert drawn(np.arange(100), 1).tolist() == list(range(100))


@pytest.mark.parametrize("widths", [(300,), (130, 1, 65), (7, 150)])
def test_the_same_tokens_are_measured_in_pieces_of_a_batch_padded_on_the_left(small, text, widths):
    """A later piece has no padding of its own, and yet a row's positions are not its columns."""
    texts = [text(300, seed=1), text(141, seed=2)]
    probes = [(DeltaNet(every=32), Residual(every=7)) for _ in range(2)]
    whole = recorded(small, one_by_one(texts), *probes[0])
    assert_same(recorded(small, in_pieces(texts, widths), *probes[1]), whole)
