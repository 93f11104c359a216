"""Locate a checkpoint: from a toy's name, a folder or a hub id to a folder on this machine."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from qwenlab.errors import BadArgument, NotCached, UnknownCheckpoint

_TOYS = Path(__file__).parent / "toys"
_PUBLISHED = Path(__file__).parent / "catalog"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

# Files to download: configs, tokenizer and safetensors; no pickled weights, code, or other formats of the weights.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """The name and the folder of a checkpoint."""

    name: str  # of the toy or the folder, or the hub id
    folder: Path
    revision: str | None = None  # commit of a hub checkpoint


def toys() -> dict[str, Path]:
    """Return the names and folders of the trained toy checkpoints that ship with qwenlab."""
    return {file.parent.name: file.parent for file in sorted(_TOYS.glob("*/config.json"))}


def locate(source: str | Path, revision: str | None = None) -> CheckpointSource:
    """Find a checkpoint, in this order: a toy's name, a folder, a hub id ("Qwen/Qwen3.6-27B").

    A hub id uses the cache of huggingface_hub, like transformers; missing files are downloaded. `revision` is a branch,
    tag or commit of a hub checkpoint.

    Raises UnknownCheckpoint, NotCached if the hub is needed and cannot be reached, and BadArgument for a revision of a
    toy or a folder.
    """
    path = Path(source).expanduser()
    if isinstance(source, str) and source in toys():
        found = CheckpointSource(source, toys()[source])
    elif source != "" and path.is_dir():  # Path("") is the current folder
        found = CheckpointSource(path.resolve().name, path)
    elif path.is_file():
        raise UnknownCheckpoint(
            f"{path} is a file.\nPass the folder that contains config.json and the safetensors shards."
        )
    elif isinstance(source, str) and _HUB_ID.fullmatch(source):
        return _on_the_hub(source, revision)
    else:
        raise UnknownCheckpoint(_unknown(str(source)))
    if revision is not None:
        raise BadArgument(
            f"revision={revision!r} works only for hub checkpoints; {source} is {found.folder}.\nLeave it out."
        )
    return found


def _on_the_hub(name: str, revision: str | None) -> CheckpointSource:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        # In offline mode, older versions of huggingface_hub still request the files of a commit.
        offline = constants.HF_HUB_OFFLINE
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_FILES, local_files_only=offline))
    except RevisionNotFoundError as error:
        raise UnknownCheckpoint(
            f"{name} has no revision {revision!r} on the hub.\nUse a branch, tag or commit that its page lists."
        ) from error
    except RepositoryNotFoundError as error:
        raise UnknownCheckpoint(
            f"{name} is neither a folder on this machine nor a hub model that you can access.\n"
            "Check the spelling; for a gated or private model, log in with: hf auth login"
        ) from error
    except LocalEntryNotFoundError as error:
        raise NotCached(
            f"{name} is not in the cache, {constants.HF_HUB_CACHE}, and the hub cannot be reached.\n"
            "On a machine with a network run\n"
            f"    hf download {name}{f' --revision {revision}' if revision else ''}\n"
            "then copy its HF_HOME (default: ~/.cache/huggingface) to this machine and set HF_HOME to the copy."
        ) from error
    return CheckpointSource(name, folder, revision=folder.name)


def _unknown(name: str) -> str:
    published = [file.stem for file in sorted(_PUBLISHED.glob("*.json"))]
    problem = f"{name!r} is neither a toy, nor a folder, nor a hub id of the form owner/name."
    if name in published:
        return f"{problem}\nUse 'Qwen/{name}' to load it from the hub; ql.anatomy({name!r}) needs no weights."
    near = difflib.get_close_matches(name, [*toys(), *published], n=2)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"{problem}\n{hint}The toys are {', '.join(toys()) or 'not installed'}."
