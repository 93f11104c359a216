"""Stores on object stores: in memory, and on a server that speaks S3."""

import gc
import json
import sys
import tempfile
from pathlib import Path

import fsspec
import pandas as pd
import pytest

from qwenlab import experiments
from qwenlab.errors import BadArgument, MissingExtra, NewerStore, StoreFailed
from qwenlab.experiments import store_at
from qwenlab.experiments.plan.points import plan
from qwenlab.experiments.record import COLUMNS, write_table
from qwenlab.experiments.store.object_store import ObjectStore
from qwenlab.experiments.sweep.provenance import initial_facts
from tests.experiments.doubling import doubling

NAME = "doubling/0123456789abcdef"


@pytest.fixture
def memory():
    """The address of an empty store in memory."""
    files = fsspec.filesystem("memory")
    yield "memory://runs"
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture(autouse=True)
def here(tmp_path_factory, monkeypatch):
    """Scratch folders are made in a folder of the test's own."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def attempt(store, name=NAME, **files):
    folder = store.new_attempt(name)
    for path, text in {"facts.json": "{}", **files}.items():
        (folder / path).write_text(text)
    return folder


def in_store(store):
    return sorted(path.removeprefix(f"{store.root}/") for path in store.files.find(store.root))


def test_a_finished_run_is_known_and_leaves_no_scratch_folder(memory, here):
    store = store_at(memory)
    assert isinstance(store, ObjectStore) and not store.is_finished(NAME)
    with store.claim(NAME) as ours:
        assert ours
        where = store.keep(attempt(store, **{"facts.json": '{"seed": 3}'}), NAME, finished=True)
    assert where == f"{memory}/{NAME}" and store_at(memory + "/").is_finished(NAME)
    assert store.facts(NAME) == {"seed": 3}
    assert in_store(store) == [f"{NAME}/facts.json", "store.json"]
    assert not list(here.iterdir())


def test_facts_come_last_and_half_written_files_not_at_all(memory):
    store = store_at(memory)
    store.keep(attempt(store, **{"zz.txt": "late", "a.txt": "early", ".a.txt.1f.part": "half"}), NAME, finished=True)
    came = sorted(store.files.find(store.root), key=store.files.created)
    assert [Path(path).name for path in came] == ["a.txt", "zz.txt", "facts.json"]


def test_unfinished_attempts_have_folders_of_their_own(memory):
    store = store_at(memory)
    kept = [store.keep(attempt(store, log=str(number)), NAME, finished=False) for number in range(2)]
    assert kept == [f"{memory}/{NAME}.1", f"{memory}/{NAME}.2"] and not store.is_finished(NAME)
    store.files.rm_file(f"{store.root}/{NAME}.1/facts.json")  # an upload that broke off is nobody else's place
    assert store.keep(attempt(store), NAME, finished=False) == f"{memory}/{NAME}.3"


def test_a_newer_run_replaces_all_of_an_older_one(memory):
    store = store_at(memory)
    store.keep(attempt(store, **{"old.svg": "old", "both.svg": "old"}), NAME, finished=True)
    store.keep(attempt(store, **{"both.svg": "new", "facts.json": '{"new": 1}'}), NAME, finished=True)
    assert in_store(store) == [f"{NAME}/both.svg", f"{NAME}/facts.json"]
    assert store.files.cat_file(f"{store.root}/{NAME}/both.svg") == b"new" and store.facts(NAME) == {"new": 1}


def test_an_attempt_that_was_not_stored_is_deleted_with_the_store(memory, here):
    store = store_at(memory)
    folder = attempt(store)
    assert folder.parent == here
    del store
    gc.collect()
    assert not list(here.iterdir())


def test_a_newer_format_is_refused(memory):
    fsspec.filesystem("memory").pipe_file("/runs/store.json", b'{"format": 2}')
    with pytest.raises(NewerStore, match="The store memory://runs has format 2; this qwenlab reads up to 1"):
        store_at(memory)


@pytest.mark.parametrize("name", ["../0123456789abcdef", "a/../../etc", "a/b/0123456789abcdef", "doubling", "/etc"])
def test_a_name_that_would_lead_out_is_refused(memory, name):
    store = store_at(memory)
    methods = (
        store.is_finished,
        store.facts,
        store.new_attempt,
        lambda name: store.keep(Path("x"), name, finished=True),
    )
    for method in (*methods, lambda name: store.claim(name).__enter__()):
        with pytest.raises(BadArgument, match="is not the name of a run"):
            method(name)


def test_an_invalid_address_is_an_error(monkeypatch):
    with pytest.raises(
        BadArgument, match="The store nowhere://x is not a folder, and not an address that fsspec knows"
    ):
        store_at("nowhere://x")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingExtra, match="The store gs://x needs a package that is not installed"):
        store_at("gs://x")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtra, match=r"The store s3://x needs .*\nRun: pip install 'qwenlab\[s3\]'"):
        store_at("s3://x")


def finished(store, experiment, double):
    """A finished run of each point, as a notebook would have left it."""
    planned = plan(experiment)
    for point in planned.points:
        spec = planned.spec.model_dump(mode="json", by_alias=True)
        facts = initial_facts(point, spec, planned.notebook_path, 1) | {"state": "finished", "seconds": 1.0}
        folder = attempt(store, point.name, **{"facts.json": json.dumps(facts)})
        rows = [("double", "{}", double * point.parameters["x"], "1")]
        write_table(pd.DataFrame(rows, columns=list(COLUMNS)), folder / "metrics.parquet")
        store.keep(folder, point.name, finished=True)
    return planned.points


def test_it_can_be_queried_and_compared_like_a_folder(memory, tmp_path):
    folder = doubling(tmp_path / "doubling", "sweep: {grid: {x: [1, 2]}}")
    old, new = store_at(f"{memory}/old"), store_at(f"{memory}/new")
    points = finished(old, folder, 2.0)
    finished(new, folder, 3.0)
    old.files.pipe_file(f"{old.root}/doubling/not-a-run/facts.json", b"{}")
    old.files.pipe_file(f"{old.root}/doubling/{'0' * 16}/facts.json", b"not json")
    table = experiments.find("doubling", where='"params.x" > 1', store=old.url)
    assert list(table["name"]) == [points[1].name]
    assert list(table["metrics.double (1)"]) == [4.0]
    assert sorted(experiments.metrics("doubling", "double", store=new.url)["value"]) == [3.0, 6.0]
    assert experiments.facts(points[0].address, store=old.url)["parameters"]["x"] == 1
    both = experiments.compare_stores(old.url, new.url)
    assert both.points == 2 and list(both.metrics["difference"]) == [1.5]
    assert list(experiments.compare(points[0].name, points[1].name, store=old.url).metrics["difference"]) == [2.0]


@pytest.fixture(scope="module")
def server():
    """A server that speaks S3, with a bucket; where it is and who we are is in the variables that s3fs reads."""
    pytest.importorskip("s3fs", reason="needs s3fs: make remote installs it")
    moto = pytest.importorskip("moto.server", reason="needs moto: make remote installs it")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }.items():
            patch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        fsspec.filesystem("s3").mkdir("bucket")
        yield running
        running.stop()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.remote
def test_a_sweep_runs_into_s3(server, here, tmp_path):
    folder, store = doubling(tmp_path / "doubling", "sweep: {grid: {x: [0, 1, 2]}}"), "s3://bucket/sweep"
    result = experiments.run(folder, store=store)
    (failed,) = result.of("failed")
    assert failed.where == f"{store}/{failed.point.name}.1" and "ZeroDivisionError" in failed.reason
    assert sorted(experiments.metrics("doubling", "double", store=store)["value"]) == [2, 4]
    assert list(experiments.find("doubling", state="failed", store=store)["exit"]) == ["cell failed"]
    assert "notebook.ipynb" in " ".join(fsspec.filesystem("s3").find(f"bucket/sweep/{failed.point.name}.1"))
    again = experiments.run(folder, store=store, only={"x": 1})
    assert [each.state for each in again.outcomes] == ["known"]
    assert not list(here.glob("qwenlab-run-*"))


@pytest.mark.remote
def test_a_sweep_on_ray_runs_into_s3(server, tmp_path):
    pytest.importorskip("ray", reason="needs ray: make remote installs it")
    folder, store = doubling(tmp_path / "doubling", "sweep: {grid: {x: [1, 2, 3]}}"), "s3://bucket/ray"
    assert experiments.run(folder, store=store, on="local-cluster").complete
    assert sorted(experiments.metrics("doubling", "double", store=store)["value"]) == [2, 4, 6]
    assert len(list(store_at(store).all_facts())) == 3


@pytest.mark.remote
def test_a_store_in_a_bucket_that_is_not_there_is_an_error_before_anything_runs(server, here, tmp_path):
    with pytest.raises(StoreFailed, match=r"The store s3://nobucket/runs failed: .*bucket.*\nCheck its address"):
        experiments.run(doubling(tmp_path / "doubling"), store="s3://nobucket/runs")
    assert not list(here.glob("qwenlab-run-*"))


@pytest.mark.remote
def test_a_run_is_not_lost_when_the_server_is(server, here):
    """Last in this file: it ends the server."""
    store = store_at("s3://bucket/lost")
    folder = attempt(store, result="42")
    server.stop()
    with pytest.raises(
        StoreFailed, match=rf"The store s3://bucket/lost failed: .*The run is not lost: it is in {folder}"
    ):
        store.keep(folder, NAME, finished=True)
    assert (folder / "result").read_text() == "42"
    with pytest.raises(StoreFailed, match=r"EndpointConnectionError|ClientConnectorError|ConnectionError"):
        store.is_finished(NAME)
    del store
    gc.collect()
    assert folder.exists()
