"""Recall texts, the positions of their questions, and the task that asks for the answers."""

import math
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.tasks import measure, recall_questions, recall_task, recall_text, recall_texts
from qwenlab.tasks.recall import KEYS


@pytest.fixture(scope="module")
def toy():
    return ql.open("toy-dense")


def splitting(pattern):
    """A checkpoint whose tokenizer makes a token of each match of the pattern."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return SimpleNamespace(tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer))


@given(pairs=st.integers(1, len(KEYS)), questions=st.integers(0, 200), seed=st.integers())
def test_every_answer_is_the_value_of_its_key(pairs, questions, seed):
    text = recall_text(pairs, questions, random.Random(seed))
    listed, asked, rest = text.split("\n")
    memory = dict(re.findall(r" (\w):(\d)", listed))
    answers = re.findall(r" (\w)\?(\d)", asked)
    assert (len(memory), len(answers), rest) == (pairs, questions, "")
    assert all(memory[key] == value for key, value in answers)


@given(pairs=st.integers(1, len(KEYS)), seed=st.integers())
def test_by_default_each_pair_is_asked_for_once(pairs, seed):
    (text,) = recall_texts(pairs, 1, seed=seed)
    listed, asked = text.split("\n")[:2]
    assert sorted(re.findall(r" (\w)\?", asked)) == sorted(re.findall(r" (\w):", listed))


def test_recall_texts_depend_on_the_seed_only():
    assert recall_texts(4, 3, seed=1) == recall_texts(4, 3, seed=1)
    assert recall_texts(4, 3, seed=1) != recall_texts(4, 3, seed=2)


@pytest.mark.parametrize("pairs", [0, len(KEYS) + 1])
def test_more_pairs_than_keys_are_refused(pairs):
    with pytest.raises(ql.errors.BadArgument, match=rf"pairs={pairs}.*one letter a key(.|\n)*1 to 52"):
        recall_text(pairs, 1, random.Random(0))


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


def test_an_answer_in_the_token_of_its_mark_is_an_error():
    with pytest.raises(BadArgument, match=r"one token of ' k\?7': no token is followed by the answer"):
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
def test_another_text_is_an_error(toy, text):
    with pytest.raises(BadArgument, match=r"Text 1 is not a recall text: .*\nGive what qwenlab\.tasks\.recall_texts"):
        recall_questions(toy, [recall_texts(2, 1)[0], text])


def test_no_text_at_all(toy):
    with pytest.raises(BadArgument, match="give a list of at least one recall text"):
        recall_questions(toy, [])


@torch.no_grad()
def test_a_recall_task_asks_each_question_once(toy):
    """Against one sequence after another."""
    texts = [text for pairs in (3, 5) for text in recall_texts(pairs, 4, seed=7)]
    found = measure(toy, [recall_task(toy, texts)], batch_size=3)
    for index, text in enumerate(texts):
        ids, right = toy.tokenizer(text).input_ids, []
        for t, token in enumerate(toy.tokenizer.convert_ids_to_tokens(ids)):
            if token == "?":
                choice = toy.model(torch.tensor([ids[: t + 1]])).logits[0, -1].argmax()
                right.append(choice.item() == ids[t + 1])
        assert len(right) == found["asked"][index] == text.split("\n")[0].count(":")
        assert math.isclose(found["accuracy"][index], np.mean(right))
    assert (found["chance"] == 0.1).all()
