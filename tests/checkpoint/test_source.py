"""Where checkpoints are searched for, and the errors for those that do not exist."""

import shutil

import huggingface_hub
import pytest

from qwenlab.checkpoint import source as module
from qwenlab.checkpoint.source import locate, toys
from qwenlab.errors import BadArgument, NotCached, UnknownCheckpoint
from qwenlab.testing.checkpoints import tiny_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("here") / "tiny", "qwen3_5", layers=2)


@pytest.fixture
def shelf(folder, tmp_path, monkeypatch):
    """A folder with two toys."""
    for name in ("toy-one", "toy-two"):
        shutil.copytree(folder, tmp_path / name)
    monkeypatch.setattr(module, "_TOYS", tmp_path)
    return tmp_path


@pytest.fixture
def cache(folder, tmp_path, monkeypatch):
    """The cache of an unreachable hub, with some-lab/tiny at one commit."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--some-lab--tiny"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path


def unknown(source, **more):
    with pytest.raises(UnknownCheckpoint) as caught:
        locate(source, **more)
    return str(caught.value)


def test_toys_are_found_by_name(shelf):
    assert toys() == {"toy-one": shelf / "toy-one", "toy-two": shelf / "toy-two"}
    found = locate("toy-two")
    assert (found.name, found.folder, found.revision) == ("toy-two", shelf / "toy-two", None)


@pytest.mark.parametrize("as_given", [str, lambda path: path])
def test_a_folder_is_named_after_itself(folder, as_given):
    found = locate(as_given(folder))
    assert (found.name, found.folder, found.revision) == ("tiny", folder, None)


def test_a_folder_relative_to_here_or_home(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert locate(".").name == "tiny"
    assert locate("~/tiny").folder == folder


def test_a_cached_checkpoint_needs_no_hub(cache):
    found = locate("some-lab/tiny")
    assert found.folder == cache / "models--some-lab--tiny" / "snapshots" / COMMIT
    assert (found.name, found.revision) == ("some-lab/tiny", COMMIT)
    assert locate("some-lab/tiny", revision=COMMIT) == found


def test_offline_the_message_has_the_download_command(cache):
    with pytest.raises(NotCached) as caught:
        locate("some-lab/other")
    assert str(caught.value) == (
        f"some-lab/other is not in the cache, {cache}, and the hub cannot be reached.\n"
        "On a machine with a network run\n    hf download some-lab/other\n"
        "then copy its HF_HOME (default: ~/.cache/huggingface) to this machine and set HF_HOME to the copy."
    )


def test_the_command_names_the_revision(cache):
    with pytest.raises(NotCached, match="hf download some-lab/tiny --revision v2\n"):
        locate("some-lab/tiny", revision="v2")


def test_only_the_hub_has_revisions(folder):
    with pytest.raises(BadArgument, match=rf"(?s)revision='v2' works only for hub checkpoints; .* is {folder}"):
        locate(folder, revision="v2")


def test_a_file_is_not_a_checkpoint(folder):
    file = folder / "config.json"
    assert unknown(file) == f"{file} is a file.\nPass the folder that contains config.json and the safetensors shards."


@pytest.mark.parametrize("source", ["nothing-like-it", "./models/gone", "/models/gone", "a/b/c", "", "a b/c"])
def test_an_unknown_name(shelf, source):
    message = unknown(source)
    assert message.startswith(f"{source!r} is neither a toy, nor a folder, nor a hub id of the form owner/name.\n")
    assert message.endswith("The toys are toy-one, toy-two.")


def test_a_misspelt_toy(shelf):
    assert "Did you mean toy-two" in unknown("toy-tow")


def test_a_published_name_without_its_owner(shelf):
    assert unknown("Qwen3.6-27B").endswith(
        "Use 'Qwen/Qwen3.6-27B' to load it from the hub; ql.anatomy('Qwen3.6-27B') needs no weights."
    )
