"""Masks and positions that do not separate text from padding, or one sequence from the next, raise an error."""

import pytest
import torch
from hypothesis import given, strategies as st

from qwenlab.capture.masks import MaskChecks, keys_of
from qwenlab.errors import AmbiguousSequences
from qwenlab.interventions import Scale, cache_activations
from qwenlab.interventions.session import intervene
from qwenlab.probes import DeltaNet
from qwenlab.probes.session import watch
from qwenlab.testing.models import tiny_model

LAYERS = ["linear_attention", "full_attention"]


@pytest.fixture(scope="module", params=[False, True], ids=["CausalLM", "ConditionalGeneration"])
def both(request):
    """One model in both of its classes."""
    return tiny_model("qwen3_5", layer_types=LAYERS, wrapped=request.param)


def watching(model):
    return watch(model, DeltaNet())


def editing(model):
    return intervene(model, Scale("layers.0.mixer", by=0.5))


@pytest.mark.parametrize("block", [watching, editing])
@pytest.mark.parametrize(
    "values", [[1, 1, 2, 2], [1, 1, 1, -1], [0.5, 1.0, 1.0, 1.0], [1.0, float("nan"), 1.0, 1.0]], ids=str
)
def test_values_other_than_0_and_1(both, text, values, block):
    message = r"values other than 0 and 1[\s\S]*Pass 1 for real tokens and 0 for padding, one sequence per row"
    with block(both):
        with pytest.raises(AmbiguousSequences, match=message):
            both(text(4)[None], attention_mask=torch.tensor([values]))
        both(text(4)[None], attention_mask=torch.tensor([[0.0, 1.0, 1.0, 1.0]]))
        both(text(4)[None], attention_mask=torch.tensor([[False, True, True, True]]))


@pytest.mark.parametrize("block", [watching, editing])
@pytest.mark.parametrize("mask", [None, torch.ones(1, 6)], ids=["no mask", "ones"])
def test_packed_rows(both, text, mask, block):
    ids = text(6)[None]
    packed = r"packs several sequences into a row \(position_ids start again\)[\s\S]*one sequence per row"
    with block(both):
        with pytest.raises(AmbiguousSequences, match=packed):
            both(ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]), attention_mask=mask)
        with pytest.raises(AmbiguousSequences, match=r"skip positions[\s\S]*count them up by 1"):
            both(ids, position_ids=torch.tensor([[0, 1, 2, 1000, 1001, 1002]]), attention_mask=mask)
        with pytest.raises(AmbiguousSequences, match=r"it got cu_seq_lens_q"):
            both(ids, cu_seq_lens_q=torch.tensor([0, 2, 6]), attention_mask=mask)
        both(ids, position_ids=torch.arange(6)[None], attention_mask=mask)
        both(ids, position_ids=torch.arange(1000, 1006)[None], attention_mask=mask)


def test_the_second_of_two_rows_is_looked_at(both, text):
    ids = torch.stack([text(4), text(4, 1)])
    with watching(both):
        with pytest.raises(AmbiguousSequences, match="start again"):
            both(ids, position_ids=torch.tensor([[0, 1, 2, 3], [0, 1, 0, 1]]), attention_mask=torch.ones(2, 4))
        with pytest.raises(AmbiguousSequences, match="other than 0 and 1"):
            both(ids, attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 1, 3]]))
        both(ids)


def test_a_packed_row_behind_a_cache(both, text):
    ids = text(9)[None]
    with watching(both):
        cache = both(ids[:, :3], use_cache=True).past_key_values
        with pytest.raises(AmbiguousSequences, match="start again"):
            both(ids[:, 3:], position_ids=torch.tensor([[3, 4, 5, 0, 1, 2]]), past_key_values=cache)


@pytest.mark.parametrize(
    ("mask", "positions"),
    [
        ([0, 0, 1, 1], [0, 0, 0, 1]),  # as `generate` numbers padding on the left
        ([0, 0, 1, 1], [1, 1, 0, 1]),  # as it did before
        ([1, 1, 0, 0], [0, 1, 1, 1]),
        ([1, 0, 0, 1], [0, 0, 0, 1]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_positions_of_padding_are_not_looked_at(mask, positions):
    MaskChecks().check({"position_ids": torch.tensor([positions])}, torch.tensor([mask]), 4)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 3), st.sampled_from([2, 4]))
def test_only_a_row_of_one_document_passes(lengths, padding, sections):
    """Documents one after another, each numbered from 0, behind padding; as one set of positions or as four."""
    positions = torch.cat([torch.zeros(padding, dtype=torch.long), *(torch.arange(length) for length in lengths)])[None]
    keys = torch.tensor([[0] * padding + [1] * sum(lengths)])
    given_positions = {"position_ids": positions if sections == 2 else positions.expand(4, 1, -1)}
    checks = MaskChecks()
    if len(lengths) == 1:
        checks.check(given_positions, keys, keys.shape[1])
    else:
        with pytest.raises(AmbiguousSequences, match="start again"):
            checks.check(given_positions, keys, keys.shape[1])


def test_three_sections_may_stand_still_and_jump_but_not_fall():
    """Time, height and width of a text with an image in it."""
    checks = MaskChecks()
    image = torch.tensor([[0, 1, 2, 2, 2, 2, 4, 5]])
    checks.check({"position_ids": torch.stack([image] * 3)}, None, 8)
    with pytest.raises(AmbiguousSequences, match="start again"):
        checks.check({"position_ids": torch.stack([torch.tensor([[0, 1, 2, 0, 1, 2]])] * 3)}, None, 6)


def test_on_other_devices_the_end_of_the_block_raises():
    checks = MaskChecks(at_once=())
    checks.check({}, torch.tensor([[1, 1]]), 2)
    checks.settle()
    checks.check({}, torch.tensor([[1, 2]]), 2)
    checks.check({}, torch.tensor([[1, 1]]), 2)
    with pytest.raises(AmbiguousSequences, match="other than 0 and 1"):
        checks.settle()
    checks.settle()  # what was raised is not raised twice


@pytest.mark.parametrize("block", [watching, editing])
def test_blocks_settle_what_is_pending(both, text, block, monkeypatch):
    monkeypatch.setattr("qwenlab.capture.sequences.MaskChecks", lambda: MaskChecks(at_once=()))
    with pytest.raises(AmbiguousSequences, match="other than 0 and 1"), block(both):
        both(text(3)[None], attention_mask=torch.tensor([[1, 1, 2]]))


def test_take_settles_what_is_pending(both, text, monkeypatch):
    monkeypatch.setattr("qwenlab.capture.sequences.MaskChecks", lambda: MaskChecks(at_once=()))
    with pytest.raises(AmbiguousSequences, match="other than 0 and 1"), cache_activations(both, "layers.0.mixer"):
        both(text(3)[None], attention_mask=torch.tensor([[1, 1, 2]]))


def test_keys_of_a_mask():
    assert keys_of(None, 2, 3) is None
    mask = torch.ones(2, 3)
    assert keys_of(mask, 2, 3) is mask
