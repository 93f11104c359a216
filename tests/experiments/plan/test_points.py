"""The points of an experiment, and the errors found before any of them runs."""

import json
import re

import pytest
from hypothesis import given, strategies as st

from qwenlab.errors import BadParameter, BadSpec, MissingParameter, UnknownCheckpoint, UnknownParameter
from qwenlab.experiments import plan
from qwenlab.experiments.plan.points import address_of
from tests.experiments.conftest import NOTEBOOK


def values(planned, *names):
    return [tuple(point.parameters[name] for name in names) for point in planned.points]


def test_every_combination_and_every_seed(experiment):
    two = NOTEBOOK.replace("x: int = 1", "x: int = 1\ny: int = 0\nz: int = 0\nw: int = 0")
    sweep = {"grid": {"x": [1, 2]}, "zip": {"y": [1, 2], "z": [3, 4]}, "list": [{"w": 5}, {"w": 6, "mode": "fast"}]}
    planned = plan(experiment(two, sweep=sweep, seeds=[0, 7]))
    assert len(planned.points) == 2 * 2 * 2 * 2
    assert set(values(planned, "y", "z")) == {(1, 3), (2, 4)}
    assert set(values(planned, "w", "mode")) == {(5, "well"), (6, "fast")}
    assert {point.seed for point in planned.points} == {0, 7}
    assert planned.swept == ["x", "y", "z", "w", "mode"]
    assert planned.describe(planned.points[0]) == "x=1 y=1 z=3 w=5 mode=well seed=0"


def test_set_replaces_the_specs_values(experiment):
    folder = experiment(parameters={"mode": "well"}, sweep={"grid": {"x": [1, 2]}})
    assert values(plan(folder, settings={"x": 5}), "x", "mode") == [(5, "well")]
    assert values(plan(folder, settings={"mode": "raise"}), "x", "mode") == [(1, "raise"), (2, "raise")]


def test_only_leaves_points_out(experiment):
    folder = experiment(sweep={"grid": {"x": [1, 2]}}, seeds=[0, 1])
    assert [(point.parameters["x"], point.seed) for point in plan(folder, only={"x": 2, "seed": 1}).points] == [(2, 1)]
    with pytest.raises(BadParameter, match=r"--only selects no point\. The points have x: \['1', '2'\]"):
        plan(folder, only={"x": 3})
    with pytest.raises(UnknownParameter, match="no parameter 'xx': did you mean 'x'"):
        plan(folder, only={"xx": 3})


@pytest.mark.parametrize(
    ("changes", "error", "complaint"),
    [
        (
            {"parameters": {"mood": "x"}},
            UnknownParameter,
            r"spec\.yaml:\d+: .*small\.py has no parameter 'mood': did you",
        ),
        ({"parameters": {"x": "one"}}, BadParameter, r"spec\.yaml:\d+: .*'x' cannot be 'one'"),
        ({"sweep": {"grid": {"x": [1, "two"]}}}, BadParameter, r"spec\.yaml:\d+: .*'x' cannot be 'two'"),
        ({"sweep": {"grid": {"x": []}}}, BadSpec, r"spec\.yaml:\d+: 'x' is swept over an empty list"),
        (
            {"sweep": {"zip": {"x": [1], "mode": ["a", "b"]}}},
            BadSpec,
            "the axes of a zip must have one length, not x: 1, mode: 2",
        ),
        (
            {"parameters": {"x": 1}, "sweep": {"grid": {"x": [2]}}},
            BadSpec,
            r"'x' already has values at .*spec\.yaml:\d+",
        ),
        ({"sweep": {"list": [{"x": 1}, {"x": 1}]}}, BadSpec, "1 of 2 points repeat another one"),
        ({"parameters": {"seed": 3}}, BadSpec, "use `seeds:` instead of a parameter `seed`"),
        ({"notebook": "none.py"}, BadSpec, r"spec\.yaml:2: no notebook at .*none\.py"),
        ({"metrics": {}}, BadSpec, r"small\.py, cell 3, line \d+ records 'loss', which is not declared: declare it"),
        ({"metrics": {"los": {"units": "nat"}}}, BadSpec, "records 'loss', which is not declared: did you mean 'los'"),
        (
            {"metrics": {"loss": {"units": "nat"}, "gain": {"units": "1"}}},
            BadSpec,
            r"spec\.yaml:\d+: .*small\.py never records 'gain'",
        ),
    ],
)
def test_is_refused_before_anything_runs(experiment, changes, error, complaint):
    with pytest.raises(error, match=complaint):
        plan(experiment(**changes))


def test_a_notebook_without_a_parameters_cell_is_refused(experiment):
    with pytest.raises(BadSpec, match=r"spec\.yaml:2: .*small\.py has no parameters cell: tag one 'parameters'"):
        plan(experiment(NOTEBOOK.replace(' tags=["parameters"]', "")))


def test_several_seeds_need_a_notebook_that_takes_one(experiment):
    with pytest.raises(
        BadSpec, match=r"spec\.yaml:\d+: the notebook has no parameter `seed`, so all seeds would give the same run"
    ):
        plan(experiment(NOTEBOOK.replace("seed: int = 0", ""), seeds=[0, 1]))


def test_a_parameter_that_must_be_given(experiment):
    notebook = NOTEBOOK.replace("x: int = 1", "x: int")
    with pytest.raises(MissingParameter, match=r"spec\.yaml:\d+: .*small\.py needs values for: x \(line 2\)"):
        plan(experiment(notebook))
    assert values(plan(experiment(notebook, parameters={"x": 4})), "x") == [(4,)]


def test_the_line_is_that_of_the_bad_value(experiment):
    folder = experiment(sweep={"grid": {"x": [1, 2, "three"]}})
    line = (folder / "spec.yaml").read_text().splitlines().index("    - three") + 1
    with pytest.raises(BadParameter, match=rf"spec\.yaml:{line}: "):
        plan(folder)


class TestTheAddress:
    def test_is_the_same_for_the_same_question(self, experiment):
        assert [point.address for point in plan(experiment()).points] == [
            point.address for point in plan(experiment(question="Asked in other words?", timeout="3 h")).points
        ]

    def test_is_not_changed_by_prose(self, experiment):
        before = plan(experiment()).points[0].address
        assert plan(experiment("# %% [markdown]\n# Prose.\n\n" + NOTEBOOK)).points[0].address == before

    def test_depends_on_the_files_that_the_notebook_imports(self, experiment):
        folder = experiment(NOTEBOOK.replace("import numpy", "def later():\n    import first\n\n\nimport numpy"))
        (folder / "first.py").write_text("from second import y")
        (folder / "second.py").write_text("y = 1")
        (folder / "third.py").write_text("z = 1")
        before = plan(folder).points[0].address
        (folder / "third.py").write_text("z = 2")
        assert plan(folder).points[0].address == before
        (folder / "second.py").write_text("y = 2")
        assert plan(folder).points[0].address != before

    @pytest.mark.parametrize(
        "changes",
        [
            {"parameters": {"x": 2}},
            {"seeds": [1]},
            {"metrics": {"loss": {"units": "bit"}}},
            {"notebook": NOTEBOOK.replace("+ x", "- x")},
        ],
    )
    def test_is_another_for_another(self, experiment, changes):
        before = plan(experiment()).points[0].address
        notebook = changes.pop("notebook", NOTEBOOK)
        assert plan(experiment(notebook, **changes)).points[0].address != before

    def test_depends_on_the_checkpoints_weights(self, experiment):
        notebook = NOTEBOOK.replace("x: int = 1", 'x: int = 1\ncheckpoint: str = "toy-moe"')
        (point,) = plan(experiment(notebook)).points
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", point.checkpoints["checkpoint"]["hash"])
        other = plan(experiment(notebook, parameters={"checkpoint": "toy-dense"})).points[0]
        assert other.address != point.address
        with pytest.raises(UnknownCheckpoint, match="toy-moi"):
            plan(experiment(notebook, parameters={"checkpoint": "toy-moi"}))

    @given(st.dictionaries(st.text(), st.integers() | st.text() | st.none() | st.lists(st.floats(allow_nan=False))))
    def test_does_not_depend_on_the_order_of_names(self, identity):
        assert address_of(identity) == address_of(dict(reversed(identity.items())))
        assert re.fullmatch("[0-9a-f]{16}", address_of(json.loads(json.dumps(identity))))
