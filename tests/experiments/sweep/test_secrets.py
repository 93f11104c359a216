"""Experiments run for real: a secret of any type is in no file and no message, and everything else stays as it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from qwenlab import experiments
from qwenlab.experiments.store.catalogue import catalogue
from qwenlab.experiments.store.location import store_at
from tests.experiments.conftest import NOTEBOOK

pytestmark = pytest.mark.slow  # processes or Jupyter kernels are started

TRICKY = "p@ss\"w\\x<é>'"
SECRETS = {
    "number": 918273645,
    "part": 0.918273645,
    "keys": ["SECRETLIST1", {"inner": "SECRETLIST2"}],
    "words": {"user": "SECRETDICT1"},
    "tricky": TRICKY,
    "flag": True,
    "brief": "e",
}
DECLARED = """
number: int = 0
part: float = 0.5
keys: list = []
words: dict = {}
tricky: str = ""
flag: bool = False
brief: str = ""
"""
CELLS = (
    NOTEBOOK.replace("x: int = 1", "x: int = 1" + DECLARED.rstrip())
    + """
# %%
import html, json
from IPython.display import HTML, JSON, display

every = [number, part, keys, words, tricky, flag, brief]
print(*every, every, json.dumps(every), dict(os.environ))
display(HTML(html.escape(repr(every))), JSON({"every": every, tricky: number}))
assert every == json.loads(os.environ["EXPECTED"])
every

# %%
if x > 1:
    raise ValueError(*every)
"""
)
LEFT = [b"918273645", b"918,273,645", b"SECRETLIST", b"SECRETDICT", b"p@ss", b"p\\u0040ss"]


@pytest.fixture
def from_variables(monkeypatch):
    """The same secrets in the environment, as text."""
    monkeypatch.setenv("EXPECTED", json.dumps(list(SECRETS.values())))
    for name, value in SECRETS.items():
        monkeypatch.setenv(f"MY_{name}", value if isinstance(value, str) else json.dumps(value))
    return {name: {"env": f"MY_{name}"} for name in SECRETS}


@pytest.mark.parametrize("how", ["variables", "listed"])
def test_a_secret_is_in_no_file_of_a_store_and_in_no_message(experiment, tmp_path, from_variables, how, capfd):
    given = from_variables if how == "variables" else SECRETS
    listed = {"secrets": list(SECRETS)} if how == "listed" else {}
    folder, store = experiment(CELLS, parameters=given, sweep={"grid": {"x": [1, 2]}}, **listed), tmp_path / "store"
    result = experiments.run(folder, store=store, warm=False)
    assert {each.point.parameters["x"]: each.state for each in result.outcomes} == {1: "finished", 2: "failed"}

    table = experiments.find("small", state=None, store=store)
    page = experiments.report("small", store=store)
    printed = capfd.readouterr()
    index = catalogue(store_at(store)).runs
    shown = [
        printed.out,
        printed.err,
        str(result),
        table.to_csv(),
        index.to_csv(),
        *(e.reason for e in result.outcomes),
    ]
    files = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert page in files and any(path.suffix == ".parquet" for path in files)
    assert not [path for path, content in files.items() for part in LEFT if part in content]
    assert not [each for each in shown for part in LEFT if part.decode() in each]
    assert TRICKY not in page.read_text()

    for outcome in result.outcomes:
        assert {str(value)[:3] for name, value in facts(outcome)["parameters"].items() if name in SECRETS} == {"•••"}
        executed = nbformat.read(Path(outcome.where) / "notebook.ipynb", 4)
        nbformat.validate(executed)
        text = executed.cells[5].outputs[0].text
        assert " True e [" in text and "'HOME'" in text  # short values are parts of ordinary text


def facts(outcome) -> dict:
    return json.loads((Path(outcome.where) / "facts.json").read_text())


def test_everyday_names_are_ordinary_parameters(experiment, tmp_path):
    cells = NOTEBOOK.replace("x: int = 1", 'x: int = 1\neos_token: str = "</s>"\nsort_key: str = "name"')
    cells = cells.replace("+ x)", "+ x + len(sort_key))").replace("import os", 'print("eos is", eos_token)\nimport os')
    (first,) = experiments.run(experiment(cells), store=tmp_path / "store").outcomes
    folder = experiment(cells, parameters={"eos_token": "e", "sort_key": "0"})
    (second,) = experiments.run(folder, store=tmp_path / "store").outcomes
    assert (first.state, second.state) == ("finished", "finished")  # not "known": they are other runs
    assert facts(second)["parameters"]["eos_token"] == "e"
    executed = nbformat.read(Path(second.where) / "notebook.ipynb", 4)
    nbformat.validate(executed)
    assert executed.cells[1].source == '# Parameters\neos_token = "e"\nsort_key = "0"\nseed = 0\n'
    assert executed.cells[2].outputs[0].text == "eos is e\n"
    found = experiments.metrics("small", "loss", store=tmp_path / "store")
    assert sorted(found["params.sort_key"]) == ["0", "name"]


def test_the_command_does_not_print_a_secret_of_a_wrong_type(experiment, tmp_path):
    folder = experiment(NOTEBOOK.replace("x: int = 1", 'x: int = 1\nhf_token: str = ""'), secrets=["hf_token"])
    command = (sys.executable, "-m", "qwenlab.cli", "run", folder, "--set", "hf_token=918273645")
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"QWENLAB_STORE": str(tmp_path)})
    assert done.returncode == 2
    assert "parameter 'hf_token' cannot be •••" in done.stderr
    assert "918" not in done.stdout + done.stderr


def test_what_is_recorded_at_once_is_all_in_the_run(experiment, tmp_path):
    """From threads and a forked process of a notebook; nothing of their lock is left in the run's folder."""
    at_once = """
    import threading, multiprocessing
    import xarray as xr
    def record(i): ql.experiments.record(loss=xr.DataArray([float(i)], dims="i", coords={"i": [i]}))
    processes = [multiprocessing.get_context("fork").Process(target=record, args=(i,)) for i in range(3)]
    threads = [threading.Thread(target=record, args=(i,)) for i in range(3, 6)]
    for each in processes + threads: each.start()
    for each in processes + threads: each.join()
    """
    cells = NOTEBOOK.replace(
        "ql.experiments.record(loss=float(np.random.rand()) + x)", "\n".join(map(str.strip, at_once.split("\n")))
    )
    metrics = {"loss": {"units": "nat", "over": ["i"]}}
    (outcome,) = experiments.run(experiment(cells, metrics=metrics), store=tmp_path / "store").outcomes
    assert outcome.state == "finished", outcome.reason
    assert sorted(experiments.metrics("small", "loss", store=tmp_path / "store")["value"]) == [0, 1, 2, 3, 4, 5]
    names = sorted(path.name for path in Path(outcome.where).iterdir())
    assert names == ["facts.json", "log.txt", "metrics.parquet", "notebook.ipynb"]
