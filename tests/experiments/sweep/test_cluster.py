"""Sweeps on a Ray cluster of several nodes, all of them on this machine."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

import qwenlab as ql
from qwenlab import experiments
from qwenlab.errors import BadArgument, MissingExtra, NeedsNotMet
from qwenlab.experiments import store_at
from qwenlab.experiments.plan.points import plan
from qwenlab.experiments.sweep import cluster as cluster_module
from qwenlab.experiments.sweep.actors import SHUTDOWN_SECONDS
from qwenlab.experiments.sweep.attempt import Cancellation
from qwenlab.experiments.sweep.cluster import run_on
from qwenlab.experiments.sweep.run import job
from tests.experiments.doubling import doubling
from tests.experiments.waiting import processes_with, until

ray = pytest.importorskip("ray", reason="needs ray: make remote installs it")
cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = pytest.mark.remote

SMALL = dict(object_store_memory=80 * 2**20)
LOCAL = "local-cluster"


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module", autouse=True)
def quiet():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


@pytest.fixture(scope="module")
def cluster(quiet):
    """A head node without cores, and two nodes with one core each; this process is connected to it."""
    started = cluster_utils.Cluster()
    started.client = free_port() if find_spec("grpc") else None
    soon_dead = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    head = dict(ray_client_server_port=started.client, include_dashboard=False, _system_config=soon_dead)
    started.add_node(num_cpus=0, **head, **SMALL)
    started.two = [started.add_node(num_cpus=1, **SMALL) for _ in range(2)]
    started.wait_for_nodes()
    ray.init(address=started.address, log_to_driver=False)
    yield started
    ray.shutdown()
    started.shutdown()


def attempts(store):
    return list(store.glob("doubling/*.1/facts.json"))


def test_every_point_is_in_the_store_once_though_a_node_dies(cluster, tmp_path):
    folder, store = doubling(tmp_path / "doubling", "sweep: {grid: {x: [1, 2, 3, 4], nap: [3.0]}}"), tmp_path / "runs"

    def kill():
        until(lambda: len(attempts(store)) == 2)
        time.sleep(1)
        cluster.remove_node(cluster.two.pop(), allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    result = experiments.run(folder, store=store, on=LOCAL)
    killer.join()
    cluster.two.append(cluster.add_node(num_cpus=1, **SMALL))

    assert result.complete
    table = experiments.find("doubling", state=None, store=store)
    assert sorted(table["name"][table["state"] == "finished"]) == sorted(point.name for point in result.plan.points)
    assert list(table["state"][table["state"] != "finished"]) == ["broken_off"]
    assert sorted(experiments.metrics("doubling", "double", store=store)["value"]) == [2, 4, 6, 8]


def test_a_point_that_fails_does_not_stop_the_others_and_kernels_stay_warm(cluster, tmp_path):
    sweep = "sweep: {grid: {x: [0, 1, 2, 3, 4], nap: [3.0]}}"  # long enough for a node that starts late to get some
    folder, store = doubling(tmp_path / "doubling", sweep), tmp_path / "runs"
    result = experiments.run(folder, store=store, on=LOCAL)
    (failed,) = result.of("failed")
    assert failed.point.parameters["x"] == 0 and "ZeroDivisionError" in failed.reason
    assert len(result.of("finished")) == 4 == len(experiments.find("doubling", store=store))
    pids = [experiments.facts(each.point.name, store=store)["pid"] for each in result.of("finished")]
    assert len(set(pids)) == 2 and os.getpid() not in pids
    assert max(each.used["runs_in_kernel"] for each in result.of("finished")) > 1
    assert [each.state for each in experiments.run(folder, store=store, on=LOCAL, only={"x": 2}).outcomes] == ["known"]
    assert not list(store.glob(".marker*"))


def test_needs_that_no_node_meets_are_an_error_that_names_the_line(cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster_module, "PATIENCE", 1.0)
    folder = doubling(tmp_path / "doubling", "needs: {cores: 1, gpus: 2}")
    line = (folder / "spec.yaml").read_text().splitlines().index("needs: {cores: 1, gpus: 2}") + 1
    with pytest.raises(
        NeedsNotMet, match=rf"spec.yaml:{line}: a run needs 2 GPUs, and no node of the cluster has more than 0\."
    ):
        experiments.run(folder, store=tmp_path / "runs", on=LOCAL)
    assert "Waiting up to 1 s for one that has." in capsys.readouterr().out
    until(lambda: ray.available_resources().get("CPU") == 2)


def test_a_node_that_comes_later_is_waited_for(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "PATIENCE", 60.0)
    folder = doubling(tmp_path / "doubling", "needs: {cores: 2, memory: 50 MiB}")
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(experiments.run, folder, store=tmp_path / "runs", on=LOCAL)
        time.sleep(3)
        assert not running.done()
        node = cluster.add_node(num_cpus=2, **SMALL)
        assert running.result(timeout=90).complete
    cluster.remove_node(node)


def test_a_node_without_the_notebook_is_sent_its_folder(cluster, tmp_path):
    notebook = """
        # %% tags=["parameters"]
        x: int = 1

        # %%
        from pathlib import Path
        from helper import twice
        from qwenlab import experiments

        experiments.record(half=float(Path("data/half.txt").read_text()), double=twice(x))
    """
    text = "\n".join(line.strip() for line in notebook.splitlines())
    folder, store = doubling(tmp_path / "doubling", "sweep: {grid: {x: [1, 2, 3]}}", text), store_at(tmp_path / "runs")
    (folder / "helper.py").write_text("twice = lambda x: 2 * x\n")
    (folder / "data").mkdir()
    (folder / "data" / "half.txt").write_text("0.5")
    planned = plan(folder)
    jobs = [job(planned, point, force=False) for point in planned.points]
    outcomes = run_on(LOCAL, planned, jobs, store, warm=True, cancellation=Cancellation())
    folder.rename(tmp_path / "gone")
    assert {each.state: each.reason for each in outcomes} == {"finished": ""}
    assert sorted(experiments.metrics("doubling", "double", store=store)["value"]) == [2, 4, 6]
    assert not list(Path("/tmp").glob("qwenlab-notebook-*"))


def test_a_secret_is_read_by_the_driver_and_stays_out_of_the_store(cluster, tmp_path, monkeypatch):
    notebook = """
# %% tags=["parameters"]
hf_token: str = ""

# %%
from qwenlab import experiments
experiments.record(half=0.5, double=len(hf_token))
"""
    monkeypatch.setenv("THE_TOKEN", "correct-horse")
    folder = doubling(tmp_path / "doubling", "parameters: {hf_token: {env: THE_TOKEN}}", notebook)
    result = experiments.run(folder, store=tmp_path / "runs", on=LOCAL)
    assert list(experiments.metrics("doubling", "double", store=tmp_path / "runs")["value"]) == [len("correct-horse")]
    assert "correct-horse" not in str(result.outcomes)
    assert not [
        path for path in (tmp_path / "runs").rglob("*") if path.is_file() and b"correct-horse" in path.read_bytes()
    ]


PIPED = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def command(folder, store, on):
    return dict(args=(sys.executable, "-m", "qwenlab.cli", "run", folder, "--store", store, "--on", on), **PIPED)


def test_the_command_runs_a_sweep_over_rays_client(cluster, tmp_path):
    pytest.importorskip("grpc", reason="needs ray[client], which brings grpcio")
    folder = doubling(tmp_path / "doubling", "sweep: {grid: {x: [0, 1, 2]}}")
    done = subprocess.run(**command(folder, tmp_path / "runs", f"ray://127.0.0.1:{cluster.client}"), timeout=120)
    assert "doubling: 2 finished, 1 failed" in done.stdout and done.returncode == 1, done.stdout
    assert len(experiments.find("doubling", store=tmp_path / "runs")) == 2


def test_a_node_with_another_version_is_an_error_that_names_both(cluster, tmp_path):
    shutil.copytree(Path(ql.__file__).parent, tmp_path / "other" / "qwenlab")
    init = tmp_path / "other" / "qwenlab" / "__init__.py"
    init.write_text(init.read_text().replace(ql.__version__, "0.0.1"))
    node = cluster.add_node(num_cpus=3, env_vars={"PYTHONPATH": str(tmp_path / "other")}, **SMALL)
    folder = doubling(tmp_path / "doubling", "needs: {cores: 3}")
    # A driver of its own: workers may import from the folder that the driver is in, and this one is in the repository.
    driver = f"import ray\nfrom qwenlab import experiments\nray.init({cluster.address!r})\n"
    driver += f"experiments.run({str(folder)!r}, store={str(tmp_path / 'runs')!r}, on='local-cluster')"
    try:
        done = subprocess.run((sys.executable, "-c", driver), cwd=tmp_path, timeout=120, **PIPED)
    finally:
        cluster.remove_node(node)
    assert f"has qwenlab 0.0.1, and the driver {ql.__version__}" in done.stdout, done.stdout
    assert not attempts(tmp_path / "runs")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_kernels_and_says_so_in_the_store(tmp_path, number):
    folder, store = doubling(tmp_path / "doubling", "sweep: {grid: {x: [1, 2, 3, 4], nap: [60.0]}}"), tmp_path / "runs"
    environment = {**os.environ, "QWENLAB_TEST": str(tmp_path)}
    driver = subprocess.Popen(**command(folder, store, LOCAL), env=environment, start_new_session=True)
    try:
        until(lambda: len(attempts(store)) == min(4, os.cpu_count() or 1))
        until(lambda: any("ipykernel_launcher" in each.cmdline() for each in processes_with(str(tmp_path))))
        os.killpg(driver.pid, number)
        # Shorter than the shutdown time: the workers answer the interrupt, the driver does not just give them up.
        printed, _ = driver.communicate(timeout=SHUTDOWN_SECONDS - 5)
    finally:
        driver.kill()
    assert driver.returncode == 130 and "4 not run" in printed, printed
    assert set(experiments.find("doubling", state=None, store=store)["state"]) == {"interrupted"}
    until(lambda: not processes_with(str(tmp_path)), seconds=15)


@pytest.mark.parametrize("on", ["ray", "ray://host", "slurm"])
def test_an_invalid_place_is_an_error(tmp_path, on):
    with pytest.raises(BadArgument, match=rf"on='{on}' is not a place to run\. Give 'ray://HOST:PORT'"):
        experiments.run(doubling(tmp_path / "doubling"), store=tmp_path / "runs", on=on)


def test_a_second_connection_is_an_error(cluster, tmp_path):
    pytest.importorskip("grpc", reason="needs ray[client], which brings grpcio")
    with pytest.raises(BadArgument, match=r"is connected to Ray already\. Call ray.shutdown\(\)"):
        experiments.run(doubling(tmp_path / "doubling"), store=tmp_path / "runs", on="ray://127.0.0.1:1")


def test_a_store_in_memory_is_an_error(tmp_path):
    with pytest.raises(BadArgument, match="memory://runs lives in one process"):
        experiments.run(doubling(tmp_path / "doubling"), store="memory://runs", on=LOCAL)


@pytest.mark.parametrize(("missing", "on"), [("ray", LOCAL), ("grpc", "ray://host:10001")])
def test_without_its_packages_the_extra_is_named(tmp_path, monkeypatch, missing, on):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtra, match=rf"on='{on}' needs .*\nRun: pip install 'qwenlab\[ray\]'"):
        experiments.run(doubling(tmp_path / "doubling"), store=tmp_path / "runs", on=on)
