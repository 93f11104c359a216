"""What recipes take: texts by label, or none for the texts that ship; long texts in passages; open checkpoints."""

import importlib

import pytest

import qwenlab as ql
from qwenlab.errors import BadArgument
from qwenlab.recipes import inputs


def test_no_texts_are_the_held_out_texts_of_each_domain():
    texts = inputs.texts_or_shipped("profile", None, 2)
    assert texts == {domain: ql.tasks.texts(domain, 2) for domain in ql.tasks.DOMAINS}


def test_texts_are_returned_and_an_empty_mapping_is_an_error():
    texts = {"mine": ["a", "b"]}
    assert inputs.texts_or_shipped("profile", texts, 1) is texts
    with pytest.raises(BadArgument, match=r"profile\(texts=\{\}\): give at least one label and its texts\."):
        inputs.texts_or_shipped("profile", {}, 1)


def test_a_long_text_is_cut_and_a_list_is_shortened():
    toy = inputs.opened("toy-dense", None, None)
    long = " ".join(ql.tasks.texts("prose", 2))
    assert inputs.passages_of(toy, long, 8, 3) == ql.tasks.passages(toy, long, tokens=8, count=3)
    assert inputs.passages_of(toy, ["a", "b", "c"], 8, 2) == ["a", "b"]


def test_an_open_checkpoint_is_used_as_it_is():
    toy = ql.open("toy-dense")
    assert inputs.opened(toy, None, None) is toy


def test_a_name_is_opened_with_the_options(monkeypatch):
    module = importlib.import_module("qwenlab.checkpoint.open")
    monkeypatch.setattr(module, "open", lambda *given, **options: (given, options))
    options = {"device": "cuda", "dtype": "bfloat16", "memory": "8GiB"}
    assert inputs.opened("a", *options.values()) == (("a",), options)
