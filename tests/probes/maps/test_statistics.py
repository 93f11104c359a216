"""Statistics of implicit and softmax attention maps match the float64 reference for any batching."""

import json

import pytest
from hypothesis import given, settings, strategies as st

from qwenlab.probes import ImplicitAttention, SoftmaxAttention
from qwenlab.probes.maps import base as maps
from tests.probes import reference
from tests.probes.compare import assert_says
from tests.probes.feeding import in_pieces, one_by_one, padded, recorded
from tests.probes.mapping import KINDS, POOL, assert_alike, both, said, seen


@pytest.mark.parametrize("every", [1, 5])
def test_every_statistic_is_the_references(model, texts, every):
    result = seen(model, texts, *both(every=every))
    read, tokens = [text for _, text in texts], [ids.tolist() for ids, _ in texts]
    for node, kind in KINDS.items():
        assert_says(said(result[node]), reference.maps(read, tokens, kind, every))


@pytest.mark.parametrize("heads", [[1], [0, 2, 3], [3]])
def test_some_heads_say_what_they_say_among_all(model, texts, heads):
    result = seen(model, texts[:3], *both(every=4, heads=heads))
    read, tokens = [text for _, text in texts[:3]], [ids.tolist() for ids, _ in texts[:3]]
    for node, kind in KINDS.items():
        assert_says(said(result[node]), reference.maps(read, tokens, kind, 4, heads))
        assert result[node]["head"].values.tolist() == heads


def test_blocks_of_rows_and_heads_say_what_all_say_at_once(model, texts, monkeypatch):
    whole = seen(model, texts[:3], *both(every=1, queries="all"))
    monkeypatch.setattr(maps, "MAX_WEIGHTS", 2 * 70 * 6)
    monkeypatch.setattr(maps, "ROWS", 4)
    assert_alike(seen(model, texts[:3], *both(every=1, queries="all")), whole)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_says_what_its_texts_say_one_by_one(model, side):
    texts = [POOL[row, :length] for row, length in enumerate((9, 40, 1, 17))]
    options = dict(every=2, queries=[0, 3, 16, 30])
    batched, single = (recorded(model, feed, *both(**options)) for feed in (padded(texts, side), one_by_one(texts)))
    assert_alike(batched, single)


@pytest.mark.slow
@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
def test_any_pieces_say_what_the_whole_says(small, lengths, widths):
    texts = [POOL[row, :length] for row, length in enumerate(lengths)]
    pieces, whole = (recorded(small, feed, *both(every=1)) for feed in (in_pieces(texts, widths), one_by_one(texts)))
    assert_alike(pieces, whole)


def test_a_row_of_one_token_has_no_entropy(small):
    """Not even that of a rounding: there is nothing to divide."""
    result = recorded(small, one_by_one([POOL[row, :1] for row in range(6)]), *both(every=1))
    for node in KINDS:
        assert (result[node]["entropy_sum"] == 0).all()


def test_embeddings_in_place_of_tokens_have_no_induction(small, text):
    embedded = small.get_input_embeddings()(text(30))[None]
    result = recorded(small, lambda model, seen: model(inputs_embeds=embedded), *both(every=1))
    for node in KINDS:
        assert int(result[node]["induction_rows"].sum()) == 0
        assert int(result[node]["tokens"].sum()) == 30


def test_what_was_left_out_is_told(small, text):
    probes = ImplicitAttention(layers=[0], every=1, heads=[1]), SoftmaxAttention(every=7, block=4)
    result = recorded(small, one_by_one([text(9)]), *probes)
    assert [json.loads(result[node].attrs["sample"]) for node in KINDS] == [
        {"layers": [0], "heads": [1]},
        {"every": 7, "block": 4},
    ]
