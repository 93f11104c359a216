"""A toy's name, a folder, or a hub id -> the folder on this machine that holds the checkpoint."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from qwenlab.errors import BadArgument, NotCached, UnknownCheckpoint

_TOYS = Path(__file__).parent / "toys"
_PUBLISHED = Path(__file__).parent / "catalog"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

# Configs, tokenizer and safetensors; never pickled weights, code, or other formats of the same weights.
_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """Where a checkpoint lies."""

    name: str  # the toy's, the hub id, or the folder's own
    folder: Path
    revision: str | None = None  # the commit, for a checkpoint of the hub


def toys() -> dict[str, Path]:
    """The trained toy checkpoints that ship with qwenlab, and their folders."""
    return {file.parent.name: file.parent for file in sorted(_TOYS.glob("*/config.json"))}


def locate(source: str | Path, revision: str | None = None) -> CheckpointSource:
    """Find a checkpoint, in this order: a toy's name, a folder, a hub id ("Qwen/Qwen3.6-27B").

    A hub id goes through the cache of huggingface_hub, the one transformers uses: what is missing is downloaded.
    `revision` is a branch, tag or commit of the hub; nothing else has revisions.

    Raises UnknownCheckpoint, and NotCached where the hub is needed and cannot be reached.
    """
    path = Path(source).expanduser()
    if isinstance(source, str) and source in toys():
        found = CheckpointSource(source, toys()[source])
    elif source != "" and path.is_dir():  # Path("") would be the folder we are in
        found = CheckpointSource(path.resolve().name, path)
    elif path.is_file():
        raise UnknownCheckpoint(
            f"{path} is a file.\nGive the folder that holds config.json and the safetensors shards."
        )
    elif isinstance(source, str) and _HUB_ID.fullmatch(source):
        return _on_the_hub(source, revision)
    else:
        raise UnknownCheckpoint(_unknown(str(source)))
    if revision is not None:
        raise BadArgument(
            f"revision={revision!r} is for checkpoints of the hub; {source} is {found.folder}.\nLeave it out."
        )
    return found


def _on_the_hub(name: str, revision: str | None) -> CheckpointSource:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        # Told to stay offline, older versions of the hub still ask it for the files of a commit.
        offline = constants.HF_HUB_OFFLINE
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_FILES, local_files_only=offline))
    except RevisionNotFoundError as error:
        raise UnknownCheckpoint(
            f"{name} has no revision {revision!r} on the hub.\nSee its branches and commits there."
        ) from error
    except RepositoryNotFoundError as error:
        raise UnknownCheckpoint(
            f"{name} is neither a folder here nor a model on the hub that you may read.\n"
            "Check the spelling; for a gated or private model, log in with: hf auth login"
        ) from error
    except LocalEntryNotFoundError as error:
        raise NotCached(
            f"{name} is not in the cache, {constants.HF_HUB_CACHE}, and the hub cannot be reached.\n"
            "On a machine with a network run\n"
            f"    hf download {name}{f' --revision {revision}' if revision else ''}\n"
            "then copy its HF_HOME (~/.cache/huggingface unless it is set) to this machine and set HF_HOME to the copy."
        ) from error
    return CheckpointSource(name, folder, revision=folder.name)


def _unknown(name: str) -> str:
    published = [file.stem for file in sorted(_PUBLISHED.glob("*.json"))]
    here = f"{name!r} is neither a toy, nor a folder, nor a hub id of the form owner/name."
    if name in published:
        return f"{here}\nWrite 'Qwen/{name}' to load it from the hub; ql.anatomy({name!r}) needs no weights."
    near = difflib.get_close_matches(name, [*toys(), *published], n=2)
    meant = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"{here}\n{meant}The toys are {', '.join(toys()) or 'not installed'}."
