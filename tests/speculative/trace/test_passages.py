"""Texts to trace: checked, tokenized, cut into windows."""

import dataclasses

import pytest

import qwenlab as ql
from qwenlab.errors import BadArgument, BadPrompt
from qwenlab.speculative.generate import generate
from qwenlab.speculative.trace.passages import NO_LIMIT, Passage, passages_of
from qwenlab.testing.checkpoints import tiny_checkpoint

ROOM = 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return ql.open(tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "qwen3_5", max_position_embeddings=ROOM))


@pytest.fixture(scope="module")
def generated(checkpoint):
    return generate(checkpoint, [[5, 6, 7], [8]], depth=2, max_new_tokens=6, labels=["a", "b"], progress=False)


def test_strings_and_tokens_are_the_same_text(checkpoint):
    text = "two words"
    tokens = checkpoint.tokenizer(text)["input_ids"]
    assert passages_of(checkpoint, text) == passages_of(checkpoint, [tokens]) == passages_of(checkpoint, tokens)
    assert passages_of(checkpoint, [text]) == [Passage(tokens, begin=1, end="open", limit=NO_LIMIT, start=0)]


def test_a_generated_text_has_its_prompt_end_and_limit(checkpoint, generated):
    first, second = passages_of(checkpoint, generated)
    assert first == Passage(generated.tokens[0], 3, "a", "length", limit=9)
    assert second == Passage(generated.tokens[1], 1, "b", "length", limit=7)


def test_an_interrupted_text_is_open_and_one_without_new_tokens_is_left_out(checkpoint, generated):
    prompt = generated.tokens[1][:1]
    stopped = dataclasses.replace(
        generated, tokens=[generated.tokens[0][:7], prompt], ended=["interrupted", "interrupted"]
    )
    assert passages_of(checkpoint, stopped) == [Passage(generated.tokens[0][:7], 3, "a", "open", limit=9)]


def test_windows_join_to_the_text_and_have_their_start(checkpoint):
    text = list(range(20))
    cut = passages_of(checkpoint, [text, text[:3]], labels=["long", "short"], window=7)
    assert [(each.label, each.start, len(each.tokens)) for each in cut] == [
        ("long", 0, 7),
        ("long", 7, 7),
        ("long", 14, 6),
        ("short", 0, 3),
    ]
    assert [token for each in cut[:3] for token in each.tokens] == text


def test_a_text_beyond_the_context_can_be_cut(checkpoint):
    passages_of(checkpoint, [[1] * ROOM])
    with pytest.raises(BadPrompt) as caught:
        passages_of(checkpoint, [[1, 2], [1] * (ROOM + 1)])
    assert f"Text 1 has {ROOM + 1} tokens, more than the model's context of {ROOM}" in str(caught.value)
    assert f"Give window={ROOM} or less" in str(caught.value)
    passages_of(checkpoint, [[1] * (ROOM + 1)], window=ROOM)
    with pytest.raises(BadPrompt, match=f"Windows have {ROOM + 1} tokens"):
        passages_of(checkpoint, [[1] * (ROOM + 1)], window=ROOM + 5)


@pytest.mark.parametrize(("texts", "says"), [
    ([], "There is no text"),
    ("", "Text 0 has no tokens"),
    ([[1, 2], []], "Text 1 has no tokens"),
    ([[1, 2], [3]], "Text 1 has 1 token, and the head drafts from a token and the hidden state of the one before it"),
])  # fmt: skip
def test_a_text_that_has_no_chain_is_refused(checkpoint, texts, says):
    with pytest.raises(BadPrompt) as caught:
        passages_of(checkpoint, texts)
    assert says in str(caught.value)
    assert "Give" in str(caught.value)


@pytest.mark.parametrize("window", [1, 0, -3, 2.5, True])
def test_a_window_has_two_tokens_or_more(checkpoint, window):
    with pytest.raises(BadArgument, match=r"trace\(window=.*\): give an integer number of tokens, 2 or more"):
        passages_of(checkpoint, [[1, 2, 3]], window=window)


@pytest.mark.parametrize("labels", ["ab", ["a"], ["a", "b", "c"]])
def test_labels_are_one_per_text(checkpoint, labels):
    with pytest.raises(BadArgument, match="labels: give a list of 2 names, one for each text"):
        passages_of(checkpoint, [[1, 2], [3, 4]], labels=labels)


def test_a_generated_text_is_not_cut(checkpoint, generated):
    assert passages_of(checkpoint, generated, window=9) == passages_of(checkpoint, generated)
    with pytest.raises(BadArgument) as caught:
        passages_of(checkpoint, generated, window=8)
    assert "so in a window they are not its own output" in str(caught.value)
    assert "generated.tokens" in str(caught.value)
    assert len(passages_of(checkpoint, generated.tokens, window=8)) == 3
