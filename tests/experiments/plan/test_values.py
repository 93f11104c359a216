"""The parameter values of a spec: which are secret, and which are not whatever their names."""

import json
import pickle
import traceback
import warnings

import pytest

from qwenlab.errors import BadParameter, BadSpec, UnknownParameter
from qwenlab.execution.secrets import HIDDEN, Secret
from qwenlab.experiments import plan
from qwenlab.experiments.plan.source import parsed
from qwenlab.experiments.sweep.run import job
from tests.experiments.conftest import NOTEBOOK

CELLS = NOTEBOOK.replace(
    "x: int = 1", 'x: int = 1\nhf_token: str = ""\napi_key: int = 0\neos_token: str = "a"\nsort_key: str = "a"'
)
ORDINARY = ("eos_token", "sort_key")


@pytest.fixture
def planned(experiment):
    def planned(cells: str = CELLS, settings=None, only=None, **changes):
        return plan(experiment(cells, **changes), settings=settings, only=only)

    return planned


def addresses(planned):
    return [point.address for point in planned.points]


class TestAName:
    """A name alone does not make a parameter secret."""

    @pytest.mark.parametrize("name", ORDINARY)
    def test_is_part_of_the_address_with_its_value(self, planned, name):
        before, after = (planned(parameters={name: value}) for value in ("a", "b"))
        assert addresses(before) == addresses(planned())  # "a" is the notebook's own
        assert addresses(before) != addresses(after)
        assert after.points[0].parameters[name] == "b"

    @pytest.mark.filterwarnings("ignore:.*'hf_token' is written")
    @pytest.mark.parametrize("name", [*ORDINARY, "hf_token"])
    def test_may_be_swept(self, planned, name):
        found = planned(sweep={"grid": {name: ["a", "b"]}})
        assert [found.describe(point) for point in found.points] == [f"{name}=a", f"{name}=b"]
        assert len(planned(sweep={"grid": {name: ["a", "b"]}}, only={name: "b"}).points) == 1

    def test_of_a_credential_is_warned_of_where_its_value_is_plain(self, planned, monkeypatch):
        with pytest.warns(UserWarning, match=r"spec\.yaml:\d+: 'hf_token' is written into the files of its runs"):
            planned(parameters={"hf_token": "hf_abc"})
        monkeypatch.setenv("MINE", "hf_abc")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            planned(parameters={"eos_token": "</s>", "hf_token": {"env": "MINE"}})
            planned(parameters={"hf_token": "hf_abc"}, secrets=["hf_token"])


@pytest.fixture(
    params=["variable", "variable set", "listed", "listed set", "listed default", "swept", "zipped", "points"]
)
def secretly(request, planned, monkeypatch):
    """A plan whose points have api_key 918273645, given in each way that a spec allows."""
    monkeypatch.setenv("MINE", "918273645")
    reference, value = {"env": "MINE"}, 918273645
    changes = {
        "variable": {"parameters": {"api_key": reference}},
        "variable set": {"settings": {"api_key": reference}},
        "listed": {"parameters": {"api_key": value}, "secrets": ["api_key"]},
        "listed set": {"settings": {"api_key": value}, "secrets": ["api_key"]},
        "listed default": {
            "cells": CELLS.replace("api_key: int = 0", f"api_key: int = {value}"),
            "secrets": ["api_key"],
        },
        "swept": {"sweep": {"grid": {"api_key": [value], "x": [1, 2]}}, "secrets": ["api_key"]},
        "zipped": {"sweep": {"zip": {"api_key": [reference]}}, "secrets": ["api_key"]},
        "points": {"sweep": {"list": [{"api_key": value}]}, "secrets": ["api_key"]},
    }
    return planned(**changes[request.param])


class TestASecret:
    def test_reaches_the_notebook(self, secretly):
        for point in secretly.points:
            assert point.arguments["api_key"].value == 918273645

    def test_is_shown_nowhere(self, secretly):
        sent = job(secretly, secretly.points[0], force=False)
        shown = [repr(secretly), str(sent), json.dumps(sent.spec), *map(secretly.describe, secretly.points)]
        shown += [json.dumps(point.parameters) for point in secretly.points]
        assert not [each for each in shown if "918" in each]
        assert {point.parameters["api_key"] for point in secretly.points} <= {HIDDEN, "••• ($MINE)"}

    def test_travels_to_other_processes(self, secretly):
        sent = pickle.loads(pickle.dumps(job(secretly, secretly.points[0], force=False)))
        assert sent.point.arguments["api_key"].value == 918273645


@pytest.mark.parametrize("values", ["hf_abcdef", [["hf_abcdef"]], {"from": "hf_abcdef"}])
def test_an_invalid_sweep_does_not_show_its_values(planned, values):
    with pytest.raises((BadSpec, BadParameter)) as error:
        planned(sweep={"grid": {"hf_token": values}}, secrets=["hf_token"])
    assert "hf_abcdef" not in "".join(traceback.format_exception(error.value))


def test_a_range_can_be_secret(planned):
    found = planned(sweep={"grid": {"api_key": {"from": 918273645, "to": 918273645, "step": 1}}}, secrets=["api_key"])
    assert found.points[0].parameters["api_key"] == HIDDEN
    assert "918" not in repr(found)


class TestTheAddressOfASecret:
    def test_has_its_name_and_where_it_comes_from(self, planned, monkeypatch):
        for variable, value in (("ONE", "hf_one"), ("TWO", "hf_two")):
            monkeypatch.setenv(variable, value)
        one, two = (planned(parameters={"hf_token": {"env": variable}}) for variable in ("ONE", "TWO"))
        assert addresses(one) != addresses(two)
        listed = [planned(parameters={"hf_token": value}, secrets=["hf_token"]) for value in ("hf_one", "hf_two")]
        assert addresses(listed[0]) == addresses(listed[1])
        monkeypatch.setenv("ONE", "renewed")
        assert addresses(planned(parameters={"hf_token": {"env": "ONE"}})) == addresses(one)

    def test_so_points_can_differ_in_the_variable_and_not_in_the_value(self, planned, monkeypatch):
        for variable in ("ONE", "TWO"):
            monkeypatch.setenv(variable, "the same")
        found = planned(sweep={"grid": {"hf_token": [{"env": "ONE"}, {"env": "TWO"}]}})
        assert [found.describe(point) for point in found.points] == ["hf_token=••• ($ONE)", "hf_token=••• ($TWO)"]
        with pytest.raises(
            BadSpec, match=r"1 of 2 points .* cannot differ only in the value of a secret: write each as"
        ):
            planned(sweep={"grid": {"hf_token": ["hf_one", "hf_two"]}}, secrets=["hf_token"])


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        ({"parameters": {"hf_token": {"env": "UNSET"}}}, BadParameter, "'hf_token' is read from UNSET, which is"),
        ({"parameters": {"x": {"env": "UNSET"}}}, BadParameter, "'x' is read from UNSET, which is not set"),
        ({"parameters": {"x": {"env": 5}}}, BadParameter, "'x': `env` must name an environment variable"),
        ({"secrets": ["x", "hf_tokn"]}, UnknownParameter, "no parameter 'hf_tokn': did you mean 'hf_token'"),
        ({"secrets": ["seed"]}, BadSpec, "'seed' cannot be secret: it is part of a run's identity"),
        ({"secrets": ["checkpoint"]}, BadSpec, "'checkpoint' cannot be secret: it is part of a run's identity"),
        ({"parameters": {"checkpoint": {"env": "HOME"}}}, BadSpec, "'checkpoint' cannot be secret"),
        ({"secrets": "hf_token"}, BadSpec, "secrets: Input should be a valid list"),
    ],
)
def test_what_is_wrong_is_an_error_with_its_line(planned, monkeypatch, changes, error, complaint):
    monkeypatch.delenv("UNSET", raising=False)
    cells = CELLS.replace("x: int = 1", 'x: int = 1\ncheckpoint: str = "toy-moe"')
    with pytest.raises(error, match=rf"spec\.yaml:\d+: .*{complaint}"):
        planned(cells, **changes)


class TestAWrongType:
    """The error says which, and does not show the value."""

    @pytest.mark.parametrize(
        "changes",
        [
            {"parameters": {"hf_token": 918273645}},
            {"settings": {"hf_token": 918273645}},
            {"sweep": {"grid": {"hf_token": ["fine", 918273645]}}},
            {"sweep": {"list": [{"hf_token": [918273645]}]}},
        ],
    )
    def test_of_a_listed_one(self, planned, changes):
        with pytest.raises(BadParameter, match=r"'hf_token' cannot be •••: Input should be a valid string") as error:
            planned(secrets=["hf_token"], **changes)
        assert "918" not in "".join(traceback.format_exception(error.value))

    def test_of_a_variable(self, planned, monkeypatch):
        monkeypatch.setenv("MINE", "hf_abcdef")
        with pytest.raises(BadParameter, match=r"spec\.yaml:\d+: .*'api_key' cannot be •••") as error:
            planned(parameters={"api_key": {"env": "MINE"}})
        assert "hf_abcdef" not in "".join(traceback.format_exception(error.value))

    @pytest.mark.parametrize("value", ["*hf_abcdef", "[hf_abcdef", "hf_abcdef\0", "2001-99-99"])
    def test_of_what_is_not_yaml(self, value):
        with pytest.raises(
            BadSpec, match=r"--set hf_token: the value is not YAML\. Put it into quotes: hf_token="
        ) as error:
            parsed([f"hf_token={value}"], "--set")
        shown = "".join(traceback.format_exception(error.value))
        assert "hf_abcdef" not in shown and "2001" not in shown


def test_another_value_of_a_listed_parameter_is_still_the_same_secret(planned):
    (point,) = planned(parameters={"hf_token": "one"}, settings={"hf_token": "two"}, secrets=["hf_token"]).points
    assert point.arguments["hf_token"] == Secret("two")
