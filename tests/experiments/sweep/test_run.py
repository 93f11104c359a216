"""Sweeps run for real: failures, killed runners, two runners at once, a full disk, and runs that continue them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from qwenlab.errors import NeedsNotMet
from qwenlab.experiments import find, metrics, run
from qwenlab.experiments.store.store import FACTS
from tests.experiments.conftest import NOTEBOOK

pytestmark = pytest.mark.slow  # processes or Jupyter kernels are started

SWEEP = {"sweep": {"grid": {"x": [1, 2, 3]}}}
SLOW = NOTEBOOK.replace('case "slow":\n        time.sleep(60)', 'case "slow":\n        time.sleep(60 if x == 2 else 0)')


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "qwenlab.cli", *map(str, words)]


def start(*words: object) -> subprocess.Popen:
    return subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def when(condition, process: subprocess.Popen, seconds: float = 90) -> None:
    """Wait until the condition holds, for as long as the process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)


def sleeping(store: Path) -> bool:
    """The run that sleeps has recorded what it records before."""
    return any(
        json.loads((each.parent / FACTS).read_text())["parameters"]["x"] == 2
        for each in store.glob("small/*.1/*.parquet")
    )


def states(store: Path) -> dict[tuple[int, str], int]:
    table = find(state=None, store=store)
    return table.groupby(["params.x", "state"]).size().to_dict()


def test_a_failing_point_does_not_stop_the_others(experiment, tmp_path, capfd):
    folder = experiment(NOTEBOOK.replace('case "raise"', 'case "well" if x == 2'), **SWEEP)
    result = run(folder, store=tmp_path / "store")
    assert [outcome.state for outcome in result.outcomes] == ["finished", "failed", "finished"]
    assert not result.complete
    shown = capfd.readouterr().err
    assert "x=2: cell [5] raised ValueError: boom" in shown
    assert re.search(r"small: 100%.*3/3 .*1 failed", shown)
    # The kernel of a failed run is replaced.
    assert [outcome.used.get("runs_in_kernel") for outcome in result.outcomes] == [1, None, 1]

    fixed = experiment(NOTEBOOK, **SWEEP)
    again = run(fixed, store=tmp_path / "store")
    assert again.complete
    assert len(again.of("finished")) == 3  # the notebook is another, so all its runs are

    third = run(fixed, store=tmp_path / "store")
    assert len(third.of("known")) == 3
    assert states(tmp_path / "store")[2, "failed"] == 1


def test_only_what_is_missing_is_run(experiment, tmp_path):
    folder, store = experiment(**SWEEP), tmp_path / "store"
    run(folder, store=store, only={"x": 2})
    rest = run(folder, store=store, jobs=2)
    assert [outcome.state for outcome in rest.outcomes] == ["finished", "known", "finished"]
    table = metrics("small", "loss", store=store)
    assert sorted(table["params.x"]) == [1, 2, 3]
    assert table["name"].is_unique


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_clean(experiment, tmp_path, sent):
    folder, store = experiment(SLOW, parameters={"mode": "slow"}, **SWEEP), tmp_path / "store"
    process = start("run", folder, "--store", store)
    when(lambda: sleeping(store), process)
    kernels = [child.pid for child in psutil.Process(process.pid).children()]
    process.send_signal(sent)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "1 finished, 2 not run" in out
    assert states(store) == {(1, "finished"): 1, (2, "interrupted"): 1}
    assert not any(psutil.pid_exists(pid) for pid in kernels)
    assert list(metrics(state="interrupted", store=store)["metric"]) == ["loss"]


def test_a_runner_that_is_killed_leaves_nothing_half_done(experiment, tmp_path):
    folder, store = experiment(SLOW, parameters={"mode": "slow"}, **SWEEP), tmp_path / "store"
    process = start("run", folder, "--store", store)
    when(lambda: sleeping(store), process)
    kernels = [child.pid for child in psutil.Process(process.pid).children()]
    assert states(store)[2, "running"] == 1
    process.kill()
    process.wait()
    assert states(store) == {(1, "finished"): 1, (2, "broken_off"): 1}
    gone = time.monotonic() + 15
    while any(psutil.pid_exists(pid) for pid in kernels):
        assert time.monotonic() < gone
        time.sleep(0.2)

    well = experiment(NOTEBOOK, parameters={"mode": "slow"}, timeout="1 h", **SWEEP)
    (well / "small.py").write_text(SLOW.replace("60 if x == 2 else 0", "0"))
    assert run(well, store=store).complete
    finished = find(store=store)
    assert list(finished.groupby("params.x").size()) == [2, 1, 1]  # x = 1 was finished with the other notebook too


def test_two_runners_share_the_work(experiment, tmp_path):
    folder, store = experiment(sweep={"grid": {"x": [1, 2, 3, 4, 5]}}), tmp_path / "store"
    both = [start("run", folder, "--store", store) for _ in range(2)]
    printed = [process.communicate(timeout=180)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert states(store) == {(x, "finished"): 1 for x in range(1, 6)}
    assert sum(int(count) for out in printed for count in re.findall(r"(\d+) finished(?! before)", out)) == 5


def test_a_full_disk_loses_nothing_that_was_there(experiment, tmp_path):
    """On a real file system of 400 kB, in a mount namespace of its own."""
    if subprocess.run(["unshare", "-rm", "true"]).returncode:
        pytest.skip("this machine lets nobody make a mount namespace")
    loss = "ql.experiments.record(loss"
    big = NOTEBOOK.replace(loss, f"if x == 2: import xarray as xr\n{loss}").replace(
        "# %%\nmatch mode",
        '# %%\nif x == 2: ql.experiments.record(datasets={"big": xr.DataArray(np.zeros(10**6))})\n\n# %%\nmatch mode',
    )
    folder, store, kept = experiment(big, **SWEEP), tmp_path / "store", tmp_path / "kept"
    store.mkdir()
    script = f"""
        mount -t tmpfs -o size=400k none {store}
        {" ".join(command("run", folder, "--store", store))}
        echo status $?
        cp -a {store} {kept}
    """
    done = subprocess.run(["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True)
    assert "status 1" in done.stdout, done
    assert "[Errno 28]" in done.stdout
    assert states(kept)[1, "finished"] == 1
    assert list(metrics("small", "loss", where='"params.x" = 2', state="failed", store=kept)["value"] > 0) == [True]
    assert list(kept.rglob("*.part")) == []
    assert run(folder, store=kept).complete


def test_the_needs_are_checked_first(experiment, tmp_path):
    store = tmp_path / "store"
    for needs, complaint in (
        ({"gpus": 64}, r"spec\.yaml:\d+: 1 x 64 GPUs are needed, and this machine has \d"),
        ({"memory": "900 TiB"}, r"spec\.yaml:\d+: 1 x 921600\.0 GiB are needed"),
        ({"extras": ["nowhere"]}, r"spec\.yaml:\d+: nowhere is not installed: pip install 'qwenlab\[nowhere\]'"),
    ):
        with pytest.raises(NeedsNotMet, match=complaint):
            run(experiment(needs=needs), store=store)
    assert not store.exists()


class TestTheCommand:
    def test_a_dry_run_runs_nothing(self, experiment, tmp_path):
        folder, store = experiment(**SWEEP), tmp_path / "store"
        done = subprocess.run(command("run", folder, "--store", store, "--dry-run"), capture_output=True, text=True)
        assert done.returncode == 0
        assert "3 points, 3 to run" in " ".join(done.stdout.split())
        assert not store.exists()

    def test_a_misspelt_parameter_is_status_2_with_its_line(self, experiment, tmp_path):
        folder = experiment(parameters={"mod": "well"})
        done = subprocess.run(command("run", folder, "--store", tmp_path / "store"), capture_output=True, text=True)
        assert done.returncode == 2
        assert re.search(r"UnknownParameter: .*spec\.yaml:\d+: .*did you mean 'mode'", done.stderr)

    def test_set_and_only(self, experiment, tmp_path):
        folder, store = experiment(**SWEEP), tmp_path / "store"
        words = ("run", folder, "--store", store, "--set", "mode=raise", "--only", "x=3")
        done = subprocess.run(command(*words), capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
        assert done.returncode == 1
        assert "cell [5] raised ValueError: boom" in done.stdout
        assert states(store) == {(3, "failed"): 1}
        bad = subprocess.run(command(*words[:-1], "x"), capture_output=True, text=True)
        assert (bad.returncode, "--only x: write name=value" in bad.stderr) == (2, True)


def test_runs_of_other_code_of_the_same_version_are_named(experiment, tmp_path):
    folder, store = experiment(), tmp_path / "store"
    first = run(folder, store=store)
    assert run(folder, store=store).of_other_code == ()
    path = Path(first.outcomes[0].where) / FACTS
    known = json.loads(path.read_text())
    known["code"]["source"] = "other"
    path.write_text(json.dumps(known))
    assert run(folder, store=store).of_other_code == (first.outcomes[0].point.name,)
