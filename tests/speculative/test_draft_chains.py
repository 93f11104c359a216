"""Chains in parallel, compared with one chain at a time in plain loops: float64, no cache and no mask."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from qwenlab.errors import BadArgument
from qwenlab.speculative.draft_chains import draft_chains
from qwenlab.testing.models import tiny_head, tiny_model
from tests.golden.mtp_head import decoder_layer, mtp_head as slow_mtp_head, norm

LENGTH, DEPTH = 11, 4


@pytest.fixture(scope="module", params=["qwen3_5", "qwen3_5_moe", "qwen3_next"])
def head(request):
    return tiny_head(tiny_model(request.param, layers=1, layer_types=["full_attention"]))


@pytest.fixture(scope="module")
def dense():
    return tiny_head(tiny_model("qwen3_5", layers=1, layer_types=["full_attention"]))


@pytest.fixture(scope="module")
def double():
    return tiny_head(tiny_model("qwen3_5", layers=1, layer_types=["full_attention"]).double()).double()


def text(head, length=LENGTH, seed=3):
    """Tokens [T] and hidden states [T, channel]."""
    generator = torch.Generator().manual_seed(seed)
    size = head.config.hidden_size
    return torch.randint(0, 270, (length,), generator=generator), torch.randn(length, size, generator=generator)


@torch.no_grad()
def drafted(head, tokens, hidden, depth=DEPTH, **options):
    """Drafts [T, depth] and logits [T, depth, vocabulary]; row 0, which has no chain, -1 and NaN."""
    draft = torch.full((len(tokens), depth), -1)
    logits = torch.full((len(tokens), depth, head.config.vocab_size), torch.nan, dtype=hidden.dtype)
    for step in draft_chains(head, tokens, hidden, depth=depth, **options):
        draft[step.rows, step.draft - 1] = step.tokens
        logits[step.rows, step.draft - 1] = step.logits
    return draft, logits


def slow_chain(head, tokens, hidden, row, *, prefilled=True, before_norm=False):
    """Drafts and logits [depth, vocabulary] of the chain of one row, over the true pairs and its own entries."""
    weights, config = head.state_dict(), head.config
    embedding = head.target_model.get_input_embeddings().weight.detach().double().numpy()
    lm_head = head.target_model.get_output_embeddings().weight.detach().double().numpy()
    first = 0 if prefilled else row - 1
    fed_tokens, fed_hidden = tokens[first + 1 : row + 1].tolist(), list(hidden[first:row].double().numpy())
    draft, logits = [], []
    for _ in range(DEPTH):
        positions = range(first, first + len(fed_tokens))
        y = slow_mtp_head(weights, config, embedding, fed_tokens, fed_hidden, positions)
        fed_back = slow_states(weights, config, embedding, fed_tokens, fed_hidden, positions) if before_norm else y
        logits.append(lm_head @ y[-1])
        draft.append(int(logits[-1].argmax()))
        fed_tokens, fed_hidden = [*fed_tokens, draft[-1]], [*fed_hidden, fed_back[-1]]
    return draft, np.stack(logits)


def slow_states(weights, config, embedding, tokens, hidden, positions):
    """Input of `mtp.norm` in the slow version."""
    w = {name: np.asarray(tensor, dtype=np.float64) for name, tensor in weights.items()}
    eps = config.rms_norm_eps
    e = np.stack([norm(embedding[token], w["pre_fc_norm_embedding.weight"], eps) for token in tokens])
    h = np.stack([norm(row, w["pre_fc_norm_hidden.weight"], eps) for row in hidden])
    layer = {name.removeprefix("layers.0."): tensor for name, tensor in w.items() if name.startswith("layers.0.")}
    return decoder_layer(layer, config, np.concatenate([e, h], axis=-1) @ w["fc.weight"].T, positions)


def assert_chains_are_slow_chains(head, options, **slow):
    tokens, hidden = text(head)
    draft, logits = drafted(head, tokens, hidden, **options)
    assert (draft[0] == -1).all()
    for row in range(1, LENGTH):
        expected, scores = slow_chain(head, tokens, hidden, row, **slow)
        assert draft[row].tolist() == expected
        np.testing.assert_allclose(logits[row], scores, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("chunk", [3, 256])
def test_parallel_chains_equal_single_chains(head, chunk):
    assert_chains_are_slow_chains(head, {"chunk": chunk})


def test_without_prefill_a_chain_attends_to_its_own_entries(dense):
    assert_chains_are_slow_chains(dense, {"chunk": 3, "prefilled": False}, prefilled=False)


def test_the_fed_back_state_can_be_chosen(dense):
    assert_chains_are_slow_chains(dense, {"chunk": 3, "feedback": lambda before, after: before}, before_norm=True)


def test_eager_attention_gets_a_mask_that_it_adds(dense):
    eager = tiny_head(tiny_model("qwen3_5", layers=1, layer_types=["full_attention"]))
    eager.config._attn_implementation = "eager"
    tokens, hidden = text(dense)
    torch.testing.assert_close(drafted(eager, tokens, hidden), drafted(dense, tokens, hidden), equal_nan=True)


@settings(max_examples=30)
@given(length=st.integers(2, 40), depth=st.integers(1, 5), chunk=st.integers(1, 50), prefilled=st.booleans())
def test_chunks_change_nothing(double, length, depth, chunk, prefilled):
    tokens, hidden = text(double, length)
    hidden = hidden.double()
    at_once = drafted(double, tokens, hidden, depth, chunk=length, prefilled=prefilled)
    in_chunks = drafted(double, tokens, hidden, depth, chunk=chunk, prefilled=prefilled)
    torch.testing.assert_close(in_chunks, at_once, equal_nan=True, atol=1e-7, rtol=0)


def test_later_tokens_change_no_chain_before_them(dense):
    tokens, hidden = text(dense, 12)
    other_tokens, other_hidden = tokens.clone(), hidden.clone()
    other_tokens[8:], other_hidden[8:] = 5, 1.0
    (draft, _), (other, _) = drafted(dense, tokens, hidden), drafted(dense, other_tokens, other_hidden)
    assert torch.equal(draft[:8], other[:8])
    assert not torch.equal(draft[8:], other[8:])


@torch.no_grad()
def test_feedback_gets_the_states_before_and_after_the_norm(dense):
    tokens, hidden = text(dense)
    pairs = []
    drafted(dense, tokens, hidden, feedback=lambda before, after: pairs.append((before, after)) or after)
    for before, after in pairs:
        torch.testing.assert_close(dense.norm(before), after)
    assert len(pairs) == DEPTH


def test_abandoned_chains_leave_no_hook(dense):
    tokens, hidden = text(dense)
    with torch.no_grad():
        abandoned = draft_chains(dense, tokens, hidden, depth=2, feedback=lambda before, after: after)
        next(abandoned)
        assert "forward" in vars(dense.norm)
        abandoned.close()
    assert "forward" not in vars(dense.norm)


def test_attention_without_masks_is_refused(dense):
    AttentionInterface.register("maskless", sdpa_attention_forward)
    maskless = tiny_head(tiny_model("qwen3_5", layers=1, layer_types=["full_attention"]))
    maskless.config._attn_implementation = "maskless"
    with pytest.raises(BadArgument) as caught:
        drafted(maskless, *text(maskless))
    assert "attn_implementation='maskless', which takes no mask" in str(caught.value)
    assert "attn_implementation='sdpa'" in str(caught.value)
