"""The store: each point at most once, complete, and nothing outside."""

import json
import threading

import pytest

from qwenlab.errors import BadArgument, MissingExtra, NewerStore
from qwenlab.experiments.store.location import store_at
from qwenlab.experiments.store.store import FolderStore, checked, write_json

NAME = "small/0123456789abcdef"


@pytest.fixture
def store(tmp_path):
    return store_at(tmp_path / "store")


def attempt(store, state="finished", text="a"):
    folder = store.new_attempt(NAME)
    write_json(folder / "facts.json", {"state": state})
    (folder / "text").write_text(text)
    return folder


def test_a_finished_run_is_in_its_place_and_nothing_else_is_there(store):
    assert not store.is_finished(NAME)
    store.keep(attempt(store), NAME, finished=True)
    assert store.is_finished(NAME)
    assert [each.name for each in (store.root / "small").iterdir()] == ["0123456789abcdef"]


def test_unfinished_attempts_have_folders_of_their_own(store):
    store.keep(attempt(store, "failed"), NAME, finished=False)
    store.keep(attempt(store, "failed"), NAME, finished=False)
    assert not store.is_finished(NAME)
    assert sorted(each.name for each in (store.root / "small").iterdir()) == [f"0123456789abcdef.{n}" for n in (1, 2)]


def test_a_repeated_run_replaces_the_old_one(store):
    store.keep(attempt(store, text="old"), NAME, finished=True)
    store.keep(attempt(store, text="new"), NAME, finished=True)
    assert (store.root / NAME / "text").read_text() == "new"
    assert [each.name for each in (store.root / "small").iterdir()] == ["0123456789abcdef"]


def test_a_runner_killed_between_its_last_two_steps_has_lost_nothing(store):
    attempt(store)  # finished, and not yet put in its place
    assert store.is_finished(NAME)
    assert store.facts(NAME) == {"state": "finished"}


def test_one_runner_at_a_time(store):
    with store.claim(NAME) as first, store_at(store.root).claim(NAME) as second:
        assert (first, second) == (True, False)
        assert store.is_claimed(NAME)
    assert not store.is_claimed(NAME)
    with store.claim(NAME) as again:
        assert again


def test_threads_that_begin_at_once_do_not_interfere(tmp_path):
    """They raced for store.json once."""
    store, errors = store_at(tmp_path / "store"), []
    barrier = threading.Barrier(8)

    def work(number):
        try:
            barrier.wait()
            with store.claim(f"small/{number:016x}") as ours:
                assert ours
                store.new_attempt(NAME)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert errors == []
    assert len(list((store.root / "small").glob("0123456789abcdef.*"))) == 8
    assert list(store.root.glob(".*.part")) == []


@pytest.mark.parametrize(
    "name", ["../x/0123456789abcdef", "small/../../etc", "small/0123", "small", "/etc/passwd", "a b/0123456789abcdef"]
)
def test_a_name_that_leads_elsewhere_is_refused(store, name):
    for use in (checked, store.new_attempt, store.is_finished):
        with pytest.raises(BadArgument, match="is not the name of a run"):
            use(name)


def test_a_newer_store_is_refused_and_left_alone(tmp_path):
    mark = tmp_path / "store" / "store.json"
    mark.parent.mkdir()
    mark.write_text(json.dumps({"package": "qwenlab", "format": 99}))
    with pytest.raises(NewerStore, match=r"has format 99; this qwenlab reads up to 1\.\nUpdate qwenlab"):
        store_at(tmp_path / "store")


def test_the_environment_names_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("QWENLAB_STORE", str(tmp_path / "named"))
    assert store_at().url == str(tmp_path / "named")
    monkeypatch.delenv("QWENLAB_STORE")
    monkeypatch.chdir(tmp_path)
    assert store_at().url == str(tmp_path / "runs")
    assert isinstance(store_at(f"file://{tmp_path}"), FolderStore)


def test_an_address_that_needs_a_package_says_which(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(MissingExtra, match=r"pip install 'qwenlab\[s3\]'"):
        store_at("s3://bucket/runs")
