"""The parameters cell of a notebook, and the values that are valid for it."""

import traceback
from pathlib import Path

import jupytext
import pytest
from hypothesis import given, strategies as st

from qwenlab.errors import BadParameter, MissingParameter, UnknownParameter
from qwenlab.execution.parameters import REQUIRED, Parameters, parameters_of
from qwenlab.execution.secrets import Secret

CELL = """\
# %% [markdown]
# Prose.

# %% tags=["parameters"]
from typing import Literal

depth: int | None = None
kinds: list[str] = ["a", "b"]
source: str
style: Literal["x", "y"] = "x"
share = 0.5
made = sum([1, 2])
"""


@pytest.fixture
def parameters(tmp_path: Path) -> Parameters:
    path = tmp_path / "question.py"
    path.write_text(CELL)
    return parameters_of(jupytext.read(path), path)


def test_names_types_defaults_and_lines(parameters):
    found = {name: (one.type, one.default, one.line) for name, one in parameters.by_name.items()}
    assert found["depth"] == (int | None, None, 7)
    assert found["kinds"] == (list[str], ["a", "b"], 8)
    assert found["source"] == (str, REQUIRED, 9)
    assert found["share"] == (float, 0.5, 11)
    assert found["made"][1:] == (None, 12)  # a computed value is unknown before the cell runs


def test_missing_values_are_the_notebooks_defaults(parameters):
    filled = parameters.filled({"source": "here", "depth": 3})
    assert filled == {"depth": 3, "kinds": ["a", "b"], "source": "here", "style": "x", "share": 0.5, "made": None}


def test_a_parameter_without_a_value_must_be_given_one(parameters):
    with pytest.raises(MissingParameter, match=r"question\.py needs values for: source \(line 9\)"):
        parameters.filled({})


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("depht", 1, "no parameter 'depht': did you mean 'depth'"),
        ("depth", "3", "'depth' cannot be '3': Input should be a valid integer"),
        ("depth", True, "'depth' cannot be True"),
        ("style", "z", "'style' cannot be 'z': Input should be 'x' or 'y'"),
        ("kinds", [1], "'kinds' cannot be"),
        ("share", {1, 2}, "'share' cannot be"),  # nothing that JSON knows
    ],
)
def test_invalid_values_are_errors(parameters, name, value, complaint):
    with pytest.raises((UnknownParameter, BadParameter), match=complaint):
        parameters.check(name, value)


class TestSecrets:
    CELL = "a: str = ''\nb: int = 0\nc: list[str] = []\nd: float = 0.0\ne: bool = False\nf = None\ng: int | None = 1\n"

    @pytest.fixture
    def declared(self) -> Parameters:
        cell = jupytext.reads(f'# %% tags=["parameters"]\n{self.CELL}', "py:percent")
        return parameters_of(cell, Path("none.ipynb"))

    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("a", "918273645", "918273645"),
            ("b", "918273645", 918273645),
            ("b", " 918_273_645 ", 918273645),
            ("c", '["SECRETLIST1"]', ["SECRETLIST1"]),
            ("d", "3", 3.0),
            ("e", "true", True),
            ("e", "no", False),
            ("f", "3", "3"),
            ("g", "null", None),
        ],
    )
    def test_a_variable_is_read_by_the_parameters_type(self, declared, monkeypatch, name, text, value):
        monkeypatch.setenv("MINE", text)
        assert declared.resolve(name, {"env": "MINE"}) == Secret(value, "MINE", text)

    @pytest.mark.parametrize(
        ("name", "text"), [("b", "918-273-645"), ("c", "SECRETLIST1"), ("c", '{"a": "SECRETLIST1"}'), ("e", "maybe")]
    )
    def test_no_error_shows_the_text_of_a_variable(self, declared, monkeypatch, name, text):
        monkeypatch.setenv("MINE", text)
        with pytest.raises(BadParameter, match=f"'{name}' cannot be •••: Input should be a valid") as error:
            declared.resolve(name, {"env": "MINE"})
        shown = "".join(traceback.format_exception(error.value))
        assert not any(part in shown for part in ("918", "SECRETLIST1", "maybe"))

    @given(value=st.integers(10**8) | st.text(min_size=9) | st.lists(st.integers(10**8), min_size=1))
    def test_no_error_shows_a_secret(self, value):
        cell = jupytext.reads('# %% tags=["parameters"]\nx: bool = True\n', "py:percent")
        with pytest.raises(BadParameter, match=f"'x' cannot be •••.*{type(value).__name__}") as error:
            parameters_of(cell, Path("none.ipynb")).check("x", Secret(value))
        shown = "".join(traceback.format_exception(error.value))
        assert not any(str(part) in shown for part in (value if isinstance(value, list) else [value]))

    def test_a_variable_that_is_not_set_is_named(self, declared, monkeypatch):
        monkeypatch.delenv("MINE", raising=False)
        with pytest.raises(BadParameter, match="'a' is read from MINE, which is not set: export it first"):
            declared.resolve("a", {"env": "MINE"})

    @pytest.mark.parametrize("variable", [5, "", None, ["MINE"]])
    def test_an_invalid_reference_is_an_error(self, declared, variable):
        with pytest.raises(BadParameter, match=r"'a': `env` must name an environment variable: \{env: NAME\}"):
            declared.resolve("a", {"env": variable})

    def test_a_name_that_is_not_there_is_an_error(self, declared):
        with pytest.raises(UnknownParameter, match="no parameter 'aa': did you mean 'a'"):
            declared.resolve("aa", {"env": "MINE"})


@given(st.integers() | st.none())
def test_valid_values_pass(value):
    cell = jupytext.reads('# %% tags=["parameters"]\ndepth: int | None = 1\n', "py:percent")
    parameters_of(cell, Path("none.ipynb")).check("depth", value)
