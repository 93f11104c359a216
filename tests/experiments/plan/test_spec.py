"""The schema of spec.yaml: every error names file and line."""

import pytest
from hypothesis import given, strategies as st

from qwenlab.errors import BadSpec, UnknownExperiment
from qwenlab.experiments.plan.spec import Range, Spec, read_spec

GOOD = """\
question: >
  What?
notebook: small.py
parameters: {x: 1}
sweep:
  grid:
    y: {from: 1, to: 8, times: 2}
  zip:
    a: [1, 2]
    b: [3, 4]
seeds: [0, 1]
needs: {gpus: 1, memory: 8 GiB, extras: [ray]}
timeout: 20 min
retries: 2
metrics:
  loss: {units: nat, over: [text], pairs: text}
"""


@pytest.fixture
def spec(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()

    def write(text: str):
        (folder / "spec.yaml").write_text(text)
        return read_spec(folder)

    return write


def test_units_are_read(spec):
    found, source = spec(GOOD)
    assert (found.timeout, found.needs.memory, found.retries) == (1200, 8 * 2**30, 2)
    assert found.question == "What?\n"
    assert source.at("sweep", "zip", "b").endswith("spec.yaml:10")
    assert source.at("sweep", "zip", "b", 7, "deeper").endswith("spec.yaml:10")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (
            "seeds:",
            "seed:",
            r"spec\.yaml:11: 'seed' is not a known key: did you mean 'seeds'\? Known keys: question, notebook",
        ),
        ("gpus:", "gpu:", r"spec\.yaml:12: 'needs\.gpu' is not a known key: did you mean 'gpus'"),
        ("units:", "unit:", r"spec\.yaml:16: 'metrics\.loss\.unit' is not a known key: did you mean 'units'"),
        ("times: 2", "time: 2", r"spec\.yaml:7: 'sweep\.grid\.y\.time' is not a known key"),
        ("notebook: small.py\n", "", r"spec\.yaml:1: 'notebook' is missing"),
        (
            "8 GiB",
            "8 GB",
            r"spec\.yaml:12: needs\.memory: '8 GB' is not a quantity: write a number and one of MiB, GiB",
        ),
        ("20 min", "20", r"spec\.yaml:13: timeout: 20 is not a quantity"),
        ("retries: 2", "retries: -1", r"spec\.yaml:14: retries: Input should be greater than or equal to 0"),
        ("pairs: text", "pairs: prompt", r"spec\.yaml:16: metrics\.loss: `pairs: prompt` must be one of `over`"),
        ("times: 2", "times: 1", r"spec\.yaml:7: sweep\.grid\.y: give `from`, a larger `to`, and either"),
        ("[text]", "[text, seed]", r"spec\.yaml:16: metrics\.loss: no dimension in `over` can have the name seed"),
        ("a: [1, 2]", "a: [1, 2", r"spec\.yaml:\d+: not YAML"),
        ("retries: 2", "question: x", r"spec\.yaml:14: 'question' appears twice; it is also on line 1"),
        ("seeds: [0, 1]", "seeds: []", r"spec\.yaml:11: seeds: List should have at least 1 item"),
    ],
)
def test_errors_name_the_line(spec, old, new, complaint):
    assert old in GOOD
    with pytest.raises(BadSpec, match=complaint):
        spec(GOOD.replace(old, new))


def test_a_list_is_not_a_spec(spec):
    with pytest.raises(BadSpec, match=r"spec\.yaml:1: a spec is a mapping"):
        spec("- question")


def test_bytes_are_not_a_spec(spec, tmp_path):
    spec(GOOD)
    (tmp_path / "small" / "spec.yaml").write_bytes(b"question: \xff")
    with pytest.raises(BadSpec, match=r"spec\.yaml: not UTF-8 text"):
        read_spec(tmp_path / "small")


def test_an_unknown_experiment_names_the_nearest(spec, tmp_path):
    spec(GOOD)
    with pytest.raises(UnknownExperiment, match=r"no spec\.yaml in .*smal\. Did you mean small\?"):
        read_spec(tmp_path / "smal")


def test_the_folders_name_is_a_plain_one(spec, tmp_path):
    spec(GOOD)
    (tmp_path / "small").rename(tmp_path / "Has Spaces")
    with pytest.raises(BadSpec, match="the name of an experiment's folder has only a-z, 0-9"):
        read_spec(tmp_path / "Has Spaces")


@given(start=st.integers(-50, 50), count=st.integers(0, 20), step=st.integers(1, 9))
def test_a_range_by_steps_is_pythons(start, count, step):
    stop = start + count * step
    assert Range.model_validate({"from": start, "to": stop, "step": step}).values() == [*range(start, stop + 1, step)]


@given(start=st.integers(1, 9), power=st.integers(0, 8), times=st.integers(2, 5))
def test_a_range_by_factors_meets_its_end(start, power, times):
    found = Range.model_validate({"from": start, "to": start * times**power, "times": times}).values()
    assert found == [start * times**each for each in range(power + 1)]


def test_a_range_of_fractions_includes_its_end():
    assert Range.model_validate({"from": 0.1, "to": 0.5, "step": 0.1}).values() == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.5]
    )


def test_only_question_and_notebook_must_be_given():
    assert Spec(question="?", notebook="a.py").seeds == [0]
