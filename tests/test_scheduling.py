"""docs/scheduling: its scripts are run for real where no scheduler is needed, else read and checked."""

import ast
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import qwenlab as ql
from qwenlab.cli import app
from qwenlab.execution.notebook_runner import read_notebook
from qwenlab.experiments.record import read_metrics

pytestmark = pytest.mark.slow  # processes or Jupyter kernels are started

ROOT = Path(__file__).parents[1]
PAGE, FOLDER = ROOT / "docs" / "scheduling.md", ROOT / "docs" / "scheduling"
SCRIPTS = [FOLDER / "nightly.sh", FOLDER / "sweep.sbatch"]

SPEC = "question: Does the schedule hold?\nnotebook: tiny.py\nseeds: [0, 1]\nmetrics: {loss: {units: nats}}\n"
NOTEBOOK = """\
# ---
# jupyter:
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% tags=["parameters"]
seed: int = 0
share: float = 0.5

# %%
import time
from pathlib import Path
import qwenlab as ql

value = Path("value.txt").read_text() if Path("value.txt").exists() else "1.0"
while Path("wait").exists():
    time.sleep(0.1)

# %%
ql.experiments.record(loss=float(value))
print(seed, share)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with one small experiment, experiments/tiny."""
    folder = tmp_path / "experiments" / "tiny"
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "tiny.py").write_text(NOTEBOOK)
    return tmp_path


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Environment variables with which `qwenlab` is this one, and papermill has the engine of pyproject.toml."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "qwenlab").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qwenlab.cli "$@"\n')
    (commands / "scontrol").write_text('#!/bin/sh\necho "$@" >> scontrol.log\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["papermill.engine"]
    installed = tmp_path / "site" / "schedule-0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: schedule\nVersion: 0\n")
    (installed / "entry_points.txt").write_text(
        "[papermill.engine]\n" + "".join(f"{name} = {where}\n" for name, where in points.items())
    )
    return os.environ | {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path / 'site'}",
    }


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `qwenlab run...` in a text; `x` replaces variables of the shell or of Python."""
    for line in re.findall(r"(?<!`)\bqwenlab (runs? [^\n&|`#]*)", text.replace("\\\n", " ")):
        yield re.sub(r"\$?\{\{.*?\}\}|\$\w+|\{\w+\}", "x", line).translate(str.maketrans("\"',", "   ")).split()


def problem(words: list[str]) -> str:
    """The error of the command for unknown options or subcommands; empty if it has them."""
    result = CliRunner().invoke(app, [*words, "--help"])
    return "" if result.exit_code == 0 else result.output


def test_a_command_with_a_wrong_option_is_found():
    assert problem(["run", "x", "--store", "y"]) == ""
    assert "--storee" in problem(["run", "x", "--storee", "y"])
    assert "dif" in problem(["runs", "dif", "x"])


@pytest.mark.parametrize("file", [PAGE, *sorted(FOLDER.iterdir())], ids=lambda file: file.name)
def test_every_command_shown_is_one_of_qwenlabs(file):
    found = list(commands(file.read_text()))
    assert found or file.name == "crontab"
    assert {tuple(words): problem(words) for words in found if problem(words)} == {}


def test_the_page_shows_every_file_and_no_other():
    links = set(re.findall(r"\]\(scheduling/([^)]+)\)", PAGE.read_text()))
    assert links == {file.name for file in FOLDER.iterdir()}
    assert len(PAGE.read_text().splitlines()) < 200


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_scripts_are_bash(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0


def test_the_crontab_runs_a_script_that_is_there():
    *_, line = (FOLDER / "crontab").read_text().splitlines()
    when, command = re.fullmatch(r"((?:[\d*]+ +){5})(.+)", line).groups()
    assert len(when.split()) == 5
    script = ROOT / re.search(r"docs/\S+", command)[0]
    assert os.access(script, os.X_OK)


def night(home, environment, date, *words, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", FOLDER / "nightly.sh", *(words or ["experiments/tiny", "nights"])],
        cwd=home,
        env=environment | {"NIGHT": date} | more,
        capture_output=True,
        text=True,
    )


class TestANight:
    def test_that_overlaps_another_does_nothing_and_prints_it(self, home, environment):
        (home / "nights").mkdir()
        with (home / "nights" / ".tiny.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = night(home, environment, "2026-01-30")
        assert (done.returncode, done.stderr) == (75, "tiny: the previous night is still running\n")
        assert [path.name for path in (home / "nights").iterdir()] == [".tiny.lock"]

    def test_of_no_experiment_ends_with_2_and_the_reason(self, home, environment):
        done = night(home, environment, "2026-01-30", "experiments/tinny", "nights")
        assert done.returncode == 2
        assert "Did you mean tiny?" in done.stderr

    def test_is_silent_until_a_metric_moves_or_a_run_fails(self, home, environment):
        value = home / "experiments" / "tiny" / "value.txt"
        for date in ("2026-01-30", "2026-01-31"):
            done = night(home, environment, date)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        value.write_text("1.25")
        moved = night(home, environment, "2026-02-01")
        assert moved.returncode == 1
        assert re.search(r"loss +nats +1 +1.25 +\+0.25", moved.stderr)
        again = night(home, environment, "2026-02-01", BASELINE="nights/2026-02-01")
        assert (again.returncode, again.stderr) == (0, "")
        assert "2 finished before" in (home / "nights" / "2026-02-01.tiny.log").read_text()
        value.write_text("none")
        failed = night(home, environment, "2026-02-02")
        assert failed.returncode == 1
        assert "could not convert string to float" in failed.stderr
        assert "beside each other" not in failed.stderr


def task(home, environment, *values, number="1", **more) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", FOLDER / "sweep.sbatch", "experiments/tiny", "store", *values],
        cwd=home,
        env=environment | {"SLURM_ARRAY_TASK_ID": number, "SLURM_JOB_ID": "77", "SLURM_CPUS_PER_TASK": "2"} | more,
        stderr=subprocess.PIPE,
        text=True,
    )


class TestAnArrayJob:
    def test_with_fewer_values_than_tasks_is_an_error(self, home, environment):
        process = task(home, environment, "seed=0", number="1")
        assert process.communicate()[1] == "task 1: only 1 values were given; match --array to them\n"
        assert process.returncode == 2

    def test_that_runs_out_of_time_comes_again_and_runs_what_is_missing(self, home, environment):
        gate = home / "experiments" / "tiny" / "wait"
        gate.touch()
        process = task(home, environment)
        deadline = time.monotonic() + 60
        while not list(home.glob("store/tiny/*.1/notebook.ipynb")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGUSR1)
        process.communicate(timeout=120)
        assert process.returncode == 130
        assert (home / "scontrol.log").read_text() == "requeue 77\n"
        assert list(ql.experiments.find(state=None, store=home / "store")["state"]) == ["interrupted"]

        gate.unlink()
        process = task(home, environment)
        process.communicate()
        assert process.returncode == 0
        finished = ql.experiments.find("tiny", store=home / "store")
        assert list(finished["seed"]) == [1]
        assert (home / "scontrol.log").read_text() == "requeue 77\n"


class TestTheWorkflow:
    @pytest.fixture
    def steps(self):
        workflow = yaml.safe_load((FOLDER / "nightly.yml").read_text())
        assert workflow[True].keys() == {"schedule", "workflow_dispatch"}  # YAML 1.1 reads `on` as a truth value
        return workflow["jobs"]["experiment"]["steps"]

    def test_has_steps_that_are_bash(self, steps):
        for step in steps:
            if "run" in step:
                subprocess.run(["bash", "-n", "-c", re.sub(r"\$\{\{.*?\}\}", "x", step["run"])], check=True)

    def test_fetches_what_it_uploads_and_reports_however_it_ends(self, steps):
        kept = {step["with"]["name"]: step for step in steps if step.get("uses", "").startswith("actions/upload")}
        assert kept.keys() == {"report", "store"}
        assert {step["if"] for step in kept.values()} == {"always()"}
        by_name = {step["name"]: step for step in steps if "name" in step}
        fetch = by_name["Fetch the store of the last night that went well"]["run"]
        assert "--name store --dir runs/last" in fetch
        assert "--status success" in fetch
        assert f"--store {kept['store']['with']['path']}" in by_name["Run"]["run"]
        assert by_name["Report"]["run"].endswith(f"--out {kept['report']['with']['path']}")
        assert f"runs diff runs/last {kept['store']['with']['path']}" in by_name["Compare"]["run"]


class TestAirflow:
    """Airflow is not installed here: the file is compiled, and its structure read."""

    @pytest.fixture
    def tree(self):
        return ast.parse((FOLDER / "airflow_dag.py").read_text())

    def calls(self, tree, name) -> list[dict]:
        """The keyword arguments of each call, evaluated with the constants of the file."""
        known: dict = {}
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Constant, ast.JoinedStr)):
                exec(ast.unparse(node), known)
        found = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == name]
        return [
            {word.arg: eval(ast.unparse(word.value), known) for word in call.keywords if word.arg} for call in found
        ]

    def test_the_notebook_has_the_parameters_that_it_is_given(self, tree):
        (operator,) = self.calls(tree, "PapermillOperator")
        assert operator.keys() == {"task_id", "input_nb", "output_nb", "parameters", "kernel_name"}
        _, declared = read_notebook(ROOT / "notebooks" / "10_layers.py")
        for name, value in operator["parameters"].items():
            declared.check(name, value)

    def test_the_commands_are_bash_and_each_night_has_its_store(self, tree):
        by_task = {each["task_id"]: each["bash_command"] for each in self.calls(tree, "BashOperator")}
        assert by_task.keys() == {"convert", "run", "compare"}
        for command in by_task.values():
            subprocess.run(["bash", "-n", "-c", command], check=True)
        store = re.search(r"--store (\S+/\{\{ ds \}\})", by_task["run"])[1]
        assert store in by_task["compare"]
        (notebook,) = self.calls(tree, "PapermillOperator")
        assert by_task["convert"].endswith(f"--output {notebook['input_nb']}")


class TestPapermillAlone:
    @pytest.fixture
    def papermill(self, home, environment):
        """Run `papermill tiny.ipynb out.ipynb` in the experiment's folder: exit status, stderr, the notebook."""
        folder = home / "experiments" / "tiny"
        convert = [sys.executable, "-m", "jupytext", "--quiet", "--to", "ipynb", "tiny.py", "-o", "tiny.ipynb"]
        subprocess.run(convert, cwd=folder, check=True)

        def papermill(*words: str, **more: str) -> tuple[int, str, dict]:
            done = subprocess.run(
                [sys.executable, "-m", "papermill", "tiny.ipynb", "out.ipynb", *words],
                cwd=folder,
                env=environment | more,
                capture_output=True,
                text=True,
            )
            return done.returncode, done.stderr, json.loads((folder / "out.ipynb").read_text())

        return papermill

    def printed(self, notebook) -> str:
        return "".join("".join(output["text"]) for cell in notebook["cells"] for output in cell.get("outputs", []))

    def states(self, notebook) -> list[str]:
        return [
            cell["metadata"]["papermill"]["status"] for cell in notebook["cells"] if "papermill" in cell["metadata"]
        ]

    @pytest.mark.parametrize("engine", [(), ("--engine", "qwenlab")], ids=["plain", "engine"])
    def test_runs_with_its_parameters_and_saves_no_recorded_values(self, papermill, home, engine):
        before = {path.name for path in (home / "experiments" / "tiny").iterdir()}
        status, _, notebook = papermill("-p", "share", "0.25", *engine)
        assert status == 0
        assert self.printed(notebook) == "0 0.25\n"
        assert set(self.states(notebook)) == {"completed"}
        assert ("qwenlab" in notebook["metadata"]["papermill"]) == bool(engine)
        assert {path.name for path in (home / "experiments" / "tiny").iterdir()} == before | {"out.ipynb"}

    def test_only_warns_of_a_misspelt_parameter(self, papermill):
        status, stderr, notebook = papermill("-p", "shaer", "0.25")
        assert status == 0
        assert "Passed unknown parameter: shaer" in stderr
        assert self.printed(notebook) == "0 0.5\n"

    def test_saves_recorded_values_if_the_environment_names_a_folder(self, papermill, tmp_path):
        run = tmp_path / "run"
        run.mkdir()
        (run / "facts.json").write_text(json.dumps({"metrics": {"loss": {"units": "nats", "over": []}}}))
        status, _, _ = papermill(QWENLAB_RUN=str(run))
        assert status == 0
        assert read_metrics(run / "metrics.parquet").to_dict("records") == [
            {"metric": "loss", "labels": "{}", "value": 1.0, "units": "nats"}
        ]

    def test_marks_the_failed_cell_with_the_engine(self, papermill, home):
        (home / "experiments" / "tiny" / "value.txt").write_text("none")
        status, stderr, notebook = papermill("--engine", "qwenlab")
        assert status == 1
        assert "could not convert string to float" in stderr
        assert self.states(notebook)[-1] == "failed"
        assert not list((home / "experiments" / "tiny").glob("*.part"))
