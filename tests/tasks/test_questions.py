"""Where recall texts ask and where the answers stand: the tokens there are what they should be."""

import random
from types import SimpleNamespace

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.tasks import recall_questions, recall_text, recall_texts


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


def splitting(pattern):
    """A checkpoint whose tokenizer makes a token of each match of the pattern."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return SimpleNamespace(tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer))


@settings(max_examples=25)
@given(sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 40)), min_size=1, max_size=3), seed=st.integers())
def test_the_tokens_there_are_question_marks_and_values(toy, sizes, seed):
    rng = random.Random(seed)
    texts = [recall_text(pairs, questions, rng) for pairs, questions in sizes]
    found = recall_questions(toy, texts)
    assert found.sizes == {"question": sum(count for _, count in sizes), "pair": max(pairs for pairs, _ in sizes)}
    for number, text in enumerate(texts):
        ids = toy.tokenizer(text).input_ids
        words = [toy.tokenizer.decode([token]) for token in ids]
        listed, asked = (part.split() for part in text.split("\n")[:2])
        own = found.isel(question=(found["text"] == number).values)
        assert own.sizes["question"] == len(asked)
        for question, wanted in zip(range(len(asked)), asked, strict=True):
            one = own.isel(question=question)
            query, pair = int(one["query"]), int(one["asked"])
            assert "".join(words[query - 1 : query + 2]).strip() == wanted
            assert words[query] == "?"
            assert listed[pair] == wanted.replace("?", ":")
            values = [key for key in one["value"].values.tolist() if key >= 0]
            assert [words[key] for key in values] == [each[2] for each in listed]
            assert (one["value"].values[len(listed) :] == -1).all()


def test_tokens_that_hold_more_than_a_mark():
    """` k:7` and ` k?` may be a token each: the positions are of the tokens that hold value and mark."""
    found = recall_questions(splitting(r" \w:\w| \w\?|\w|\n"), [" a:3 k:7\n k?7 a?3\n"])
    assert found["value"].values.tolist() == [[0, 1], [0, 1]]
    assert found["query"].values.tolist() == [3, 5]
    assert found["asked"].values.tolist() == [1, 0]


def test_an_answer_that_is_never_due():
    with pytest.raises(BadArgument, match=r"one token of ' k\?7': after no token is the answer due"):
        recall_questions(splitting(r" \w:\w| \w\?\w|\n"), [" a:3 k:7\n k?7 a?3\n"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A prose text.",
        " a:3 k:7\n",
        " a:3 k:7\n x?7\n",
        " a:3 k:7\n k?7",
        " a:3  k:7\n k?7\n",
        " a:3\n a?3\nand more",
    ],
)
def test_what_is_no_recall_text(toy, text):
    with pytest.raises(BadArgument, match=r"Text 1 is no recall text: .*\nGive what qwenlab\.tasks\.recall_texts"):
        recall_questions(toy, [recall_texts(2, 1)[0], text])


def test_no_text_at_all(toy):
    with pytest.raises(BadArgument, match="give a list of at least one recall text"):
        recall_questions(toy, [])
