"""Redaction takes a secret out of every string, whatever writes it, and leaves a valid notebook."""

import html
import json
from urllib.parse import quote_plus

import nbformat
import pytest
from hypothesis import given, strategies as st
from nbformat import v4

from qwenlab.execution.redaction import SHORTEST, Redaction
from qwenlab.execution.secrets import HIDDEN, Secret
from tests.execution.test_secrets import JSON

TRICKY = "p@ss\"w\\x<é>'&"
WORDS = ("cells", "source", "metadata", "text/plain", "output_type", "execution_count", "nbformat", "e", "0", "•" * 9)


def redaction(*values):
    return Redaction(map(Secret, values))


@pytest.mark.parametrize(
    "write",
    [
        str,
        repr,
        ascii,
        json.dumps,
        lambda text: json.dumps(text, ensure_ascii=False),
        lambda text: json.dumps({"inner": json.dumps([text])}),
        lambda text: repr({"Authorization": f"'Bearer' \"{text}\""}),
        lambda text: repr(json.dumps(text)),
        html.escape,
        lambda text: html.escape(repr(text), quote=False),
        lambda text: f"https://host/?token={quote_plus(text)}",
        lambda text: "\x1b[31m".join(text),
        lambda text: f"  {text}\n",
    ],
)
@pytest.mark.parametrize("secret", ["hf_abcdef12", TRICKY, f"{TRICKY}\n"])
def test_it_is_found_however_it_is_written(write, secret):
    written = redaction(secret).text(f"before {write(secret)} after")
    assert HIDDEN in written
    assert written.startswith("before ") and written.endswith(" after")
    assert not any(part in written for part in ("hf_ab", "abcdef", "p@ss", "p%40ss", "w\\x"))


def test_every_secret_between_colours_is_found():
    text = "\x1b[1mhf_\x1b[32mabcdef12\x1b[0m, hf_\x1b[mabcdef12 and hf_abcdef1\x1b[0m"
    assert redaction("hf_abcdef12").text(text) == "\x1b[1m•••\x1b[0m, ••• and hf_abcdef1\x1b[0m"


@pytest.mark.parametrize(
    ("secret", "text"),
    [
        (918273645, "918273645 918,273,645"),
        (0.123456789, "0.123456789"),
        (["SECRETLIST1"], "['SECRETLIST1'] SECRETLIST1"),
        ({"user": "u", "deep": [{"key": "SECRETDICT1"}]}, "SECRETDICT1"),
        ([1, 2, 3, True], "[1, 2, 3, True] [1, 2, 3, true]"),
        ("  padded-secret\n", "padded-secret"),
    ],
)
def test_values_of_every_type_are_found(secret, text):
    assert set(redaction(secret).text(text).split()) == {HIDDEN}


@pytest.mark.parametrize("secret", ["e", "0", "cells", "hunter2", True, None, 1, 1234567, "", [], {}, ["e", "a"]])
def test_short_values_leave_text_alone(secret):
    notebook = json.dumps({"cells": [], "e": True, "hunter2": 1234567, "none": None})
    assert redaction(secret).text(notebook) == notebook


def test_the_text_of_the_variable_is_found_too():
    assert Redaction([Secret(918273645, "PIN", "918_273_645")]).text("918_273_645") == HIDDEN


def test_the_text_around_a_secret_does_not_form_another():
    assert redaction("•" * 8).text("•" * 13) == HIDDEN  # HIDDEN and the five that are left are eight again


@given(st.text(min_size=SHORTEST), st.text(), st.text())
def test_nothing_of_it_is_left_in_a_text(secret, before, after):
    assert secret not in redaction(secret).text(before + secret + after)


def test_json_keeps_its_shape():
    content = {"a": [918273645, 1, "x918273645", None, True], "918273645": 2.5}
    assert redaction(918273645).json(content) == {"a": [HIDDEN, 1, "x•••", None, True], "918273645": 2.5}
    assert HIDDEN in redaction(918273645).json(content, keys=True)


def notebooks(text):
    """Valid notebooks, with text in every place that a kernel, papermill or a person can write to."""
    lines = text | st.lists(text, max_size=3)
    bundle = st.fixed_dictionaries(
        {}, optional={"text/plain": lines, "text/html": text, "image/png": text, "application/json": JSON | text}
    )
    outputs = st.one_of(
        st.builds(v4.new_output, st.just("stream"), text=lines),
        st.builds(v4.new_output, st.just("error"), ename=text, evalue=text, traceback=st.lists(text, max_size=2)),
        st.builds(v4.new_output, st.just("display_data"), data=bundle, metadata=st.dictionaries(text, JSON)),
        st.builds(v4.new_output, st.just("execute_result"), data=bundle, execution_count=st.integers(0)),
    )
    tags = st.lists(text.map(lambda tag: tag.replace(",", "")).filter(bool), unique=True, max_size=3)
    metadata = st.fixed_dictionaries(
        {"papermill": st.dictionaries(text, JSON, max_size=2)},
        optional={"tags": tags, "collapsed": st.booleans(), "scrolled": st.sampled_from([True, False, "auto"])},
    )
    cells = st.one_of(
        st.builds(v4.new_markdown_cell, text, metadata=metadata, attachments=st.dictionaries(text, bundle, max_size=1)),
        st.builds(v4.new_raw_cell, text, metadata=metadata),
        st.builds(v4.new_code_cell, text, metadata=metadata, outputs=st.lists(outputs, max_size=3)),
    )
    return st.builds(v4.new_notebook, cells=st.lists(cells, max_size=3), metadata=st.fixed_dictionaries({"x": JSON}))


def strings(notebook):
    """The texts in which nothing may be left."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            for content in (output.get("data", {}).values(), *(output.get(n, "") for n in ("text", "ename", "evalue"))):
                yield from (each for each in ([content] if isinstance(content, str) else content) if each)
            yield from output.get("traceback", [])


SECRETS = JSON | st.sampled_from(WORDS) | st.text(min_size=SHORTEST)


@given(st.data(), st.lists(SECRETS, min_size=1, max_size=3))
def test_a_notebook_stays_valid_and_has_none(data, secrets):
    texts = [each for each in secrets if isinstance(each, str) and each]
    text = st.lists(st.text(max_size=5) | st.sampled_from([*texts, "x"]), max_size=3).map("".join)
    notebook = data.draw(notebooks(text))
    nbformat.validate(notebook)
    found = redaction(*secrets).notebook(notebook)
    nbformat.validate(found)
    read = nbformat.reads(nbformat.writes(found), 4)
    nbformat.validate(read)
    assert [cell.id for cell in read.cells] == [cell.id for cell in notebook.cells]
    long = [each for each in texts if len(each) >= SHORTEST]
    assert not [each for each in long for part in strings(found) if isinstance(part, str) and each in part]


def test_every_place_of_a_notebook_is_redacted():
    secret = 918273645
    outputs = [
        v4.new_output("stream", text=["9182", "73645\n"]),
        v4.new_output("error", ename="E918273645", evalue="918273645", traceback=["\x1b[31m918\x1b[0m273645"]),
        v4.new_output(
            "display_data",
            data={
                "text/plain": "918273645",
                "application/json": {"918273645": 918273645},
                "image/svg+xml": ["918273645"],
            },
            metadata={"size": 918273645},
        ),
    ]
    code = v4.new_code_cell("x = 918273645", outputs=outputs, metadata={"tags": ["918273645", "•••"], "n": 918273645})
    prose = v4.new_markdown_cell("918273645", attachments={"a.txt": {"text/plain": "918273645"}})
    notebook = v4.new_notebook(cells=[code, prose], metadata={"widgets": {"state": {"value": 918273645}}})
    written = nbformat.writes(redaction(secret).notebook(notebook))
    assert "918" not in written
    nbformat.validate(nbformat.reads(written, 4))
    assert "918273645" in nbformat.writes(notebook)  # it was a copy
