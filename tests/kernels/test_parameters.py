"""What the parameters cell says, and which values fit it."""

from pathlib import Path

import jupytext
import pytest
from hypothesis import given, strategies as st

from qwenlab.errors import BadParameter, MissingParameter, UnknownParameter
from qwenlab.kernels.parameters import REQUIRED, Parameters, parameters_of

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
    found = {name: (known.type, known.default, known.line) for name, known in parameters.by_name.items()}
    assert found["depth"] == (int | None, None, 7)
    assert found["kinds"] == (list[str], ["a", "b"], 8)
    assert found["source"] == (str, REQUIRED, 9)
    assert found["share"] == (float, 0.5, 11)
    assert found["made"][1:] == (None, 12)  # what is worked out is not known before the cell runs


def test_what_is_not_given_has_the_notebooks_value(parameters):
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
def test_what_does_not_fit_is_refused(parameters, name, value, complaint):
    with pytest.raises((UnknownParameter, BadParameter), match=complaint):
        parameters.check({name: value})


@given(st.integers() | st.none())
def test_what_fits_passes(value):
    cell = jupytext.reads('# %% tags=["parameters"]\ndepth: int | None = 1\n', "py:percent")
    parameters_of(cell, Path("none.ipynb")).check({"depth": value})
