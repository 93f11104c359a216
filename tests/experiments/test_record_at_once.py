"""`record` from threads and processes at the same time: nothing is lost, and each value is still recorded once."""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import xarray as xr
from filelock import FileLock

import qwenlab as ql
from qwenlab.errors import DuplicateMetric
from qwenlab.experiments.record import LOCK, METRICS, RUN, read_metrics
from tests.experiments.waiting import until

pytestmark = pytest.mark.slow  # processes or Jupyter kernels are started

COUNT = 6


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "facts.json").write_text(json.dumps({"metrics": {"part": {"units": "1", "over": ["i"]}}}))
    monkeypatch.setenv(RUN, str(tmp_path))
    return tmp_path


def record(number: int) -> None:
    part = xr.DataArray([float(number)], dims="i", coords={"i": [number]})
    ql.experiments.record(part=part, datasets={f"d{number}": xr.Dataset({"x": number})})


def is_recorded(number: int) -> bool:
    """Record the value; False if it was there before."""
    try:
        record(number)
    except DuplicateMetric:
        return False
    return True


def in_threads(numbers: list[int]) -> None:
    with ThreadPoolExecutor(len(numbers)) as threads:
        list(threads.map(record, numbers))


def in_processes(start: str) -> Callable[[list[int]], None]:
    def work(numbers: list[int]) -> None:
        context = multiprocessing.get_context(start)
        processes = [context.Process(target=record, args=(number,)) for number in numbers]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * len(processes)

    return work


def in_both(numbers: list[int]) -> None:
    """Two forked processes with two threads each, and two threads here."""
    parts = [numbers[:2], numbers[2:4], numbers[4:]]
    processes = [multiprocessing.get_context("fork").Process(target=in_threads, args=(part,)) for part in parts[:2]]
    for process in processes:
        process.start()
    in_threads(parts[2])
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.mark.parametrize(
    "at_once",
    [
        pytest.param(in_threads, id="threads"),
        pytest.param(in_processes("fork"), id="forked processes"),
        pytest.param(in_both, id="threads and processes"),
        pytest.param(in_processes("spawn"), id="spawned processes", marks=pytest.mark.slow),  # each imports qwenlab
    ],
)
def test_nothing_is_lost(folder, at_once):
    at_once(list(range(COUNT)))
    table = read_metrics(folder / METRICS)
    assert sorted(table["value"]) == [float(number) for number in range(COUNT)]
    assert sorted(path.name for path in (folder / "datasets").iterdir()) == [f"d{n}.nc" for n in range(COUNT)]


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_of_several_that_record_one_value_one_succeeds(folder, pool):
    context = {"mp_context": multiprocessing.get_context("fork")} if pool is ProcessPoolExecutor else {}
    with pool(COUNT, **context) as several:
        assert sorted(several.map(is_recorded, [7] * COUNT)) == [False] * (COUNT - 1) + [True]
    assert list(read_metrics(folder / METRICS)["value"]) == [7.0]


def test_a_process_killed_while_it_writes_blocks_nobody(folder):
    def hold() -> None:
        with FileLock(folder / LOCK):
            (folder / "locked").touch()
            signal.pause()

    process = multiprocessing.get_context("fork").Process(target=hold, daemon=True)
    process.start()
    until((folder / "locked").exists)
    waiting = threading.Thread(target=record, args=(1,), daemon=True)
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()  # it waits for the lock
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    waiting.join(30)
    assert not waiting.is_alive()
    assert list(read_metrics(folder / METRICS)["value"]) == [1.0]
