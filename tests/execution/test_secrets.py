"""Secrets reach the kernel in its environment, and their text does not show them."""

import json

import nbformat
import pytest
from hypothesis import given, strategies as st

from qwenlab.execution.secrets import HIDDEN, Secret, environment_of, inject, is_reference, looks_secret, shown

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def test_its_text_is_hidden():
    assert str(Secret("hf_abc")) == repr(Secret("hf_abc")) == HIDDEN
    assert str(Secret(5, "PIN", "5")) == "••• ($PIN)"
    assert shown({"a": Secret("x"), "eos_token": "</s>"}) == {"a": HIDDEN, "eos_token": "</s>"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [({"env": "NAME"}, True), ({"env": 5}, True), ({"env": "NAME", "x": 1}, False), ("env", False), (None, False)],
)
def test_a_reference_is_a_mapping_with_env_alone(value, expected):
    assert is_reference(value) is expected


@pytest.mark.parametrize("name", ["hf_token", "API_KEY", "aws_secret_access_key", "db_password", "client_secret"])
def test_names_of_credentials_look_secret(name):
    assert looks_secret(name, "abc")
    assert not looks_secret(name, "")
    assert not looks_secret(name, Secret("abc"))


@pytest.mark.parametrize("name", ["eos_token", "pad_token", "sort_key", "cache_key", "key", "max_tokens", "secretary"])
def test_everyday_names_do_not(name):
    assert not looks_secret(name, "abc")


@given(JSON)
def test_the_injected_cell_reads_the_value_and_does_not_contain_it(value):
    secrets = {"one": Secret(value), "two": Secret(value, "NAME")}
    cell = nbformat.v4.new_code_cell(
        '# Parameters\nx = 3\none = "\\u2022\\u2022\\u2022"\ntwo = "\\u2022\\u2022\\u2022 ($NAME)"\n',
        metadata={"tags": ["injected-parameters"]},
    )
    inject(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("x"), cell]), secrets)
    variables = environment_of(secrets)
    namespace = {"__import__": lambda name: {"json": json, "os": type("os", (), {"environ": variables})}[name]}
    exec(cell.source, namespace)
    assert (namespace["x"], namespace["one"], namespace["two"]) == (3, value, value)
    assert cell.source == SOURCE


SOURCE = """\
# Parameters
x = 3
one = __import__("json").loads(__import__("os").environ["QWENLAB_SECRET_one"])  # •••
two = __import__("json").loads(__import__("os").environ["QWENLAB_SECRET_two"])  # •••
"""
