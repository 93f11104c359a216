"""Keys and tokens are not written down."""

import json

import pytest
from hypothesis import given, strategies as st

from qwenlab.kernels.secrets import HIDDEN, is_secret, redacted, without


@pytest.mark.parametrize("name", ["hf_token", "API_KEY", "key", "aws_secret", "db_password"])
def test_is_known_by_its_name(name):
    assert is_secret(name)
    assert redacted({name: "abc", "x": 1}) == {name: HIDDEN, "x": 1}
    assert redacted({name: None}) == {name: None}


@pytest.mark.parametrize("name", ["max_tokens", "key_heads", "monkey", "tokens"])
def test_other_names_are_not(name):
    assert redacted({name: "abc"}) == {name: "abc"}


@given(st.text(min_size=6), st.text())
def test_nothing_of_it_is_left_in_a_notebook(secret, around):
    source = f"hf_token = {json.dumps(secret)}  # {around.replace(secret, '')}"
    written = json.dumps({"source": source, "parameters": {"hf_token": secret}})
    read = json.loads(without(written, {"hf_token": secret}))
    assert read["parameters"]["hf_token"] == HIDDEN
    assert secret not in read["source"].replace(HIDDEN, "")
