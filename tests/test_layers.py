"""The arrows of docs/decisions/0001: who may import whom, read from the source of every file."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

PACKAGE = Path(__file__).parents[1] / "qwenlab"
FILES = sorted(PACKAGE.rglob("*.py"))

# Both measure or change the same places of a model; what both need is in `capture`.
APART = {"probes", "interventions"}

# A room imports itself and rooms before it. `record` comes before `probes`, which hand their numbers to a Recording;
# `stats` comes before the rooms that compute intervals.
# `testing` stands beside them: it imports any, and none imports it.
# `renamed` may be used by the `__init__` of every room: it imports rooms only when an old name is used.
GROUND = ("renamed", "__init__", "errors", "arguments")
ROOMS = (
    *GROUND,
    "checkpoint",
    "record",
    "stats",
    "capture",
    "probes",
    "interventions",
    "tasks",
    "speculative",
    "ablations",
    "plots",
    "widgets",
    "notebook",
    "execution",
    "experiments",
    "recipes",
    "cli",
    "testing",
)

TENSOR_ROOMS = {"checkpoint", "tasks", "capture", "probes", "interventions", "speculative", "ablations", "testing"}
ALLOWED_IN = {
    "torch": TENSOR_ROOMS | {"notebook"},  # only where it opens a checkpoint: see test_import.py
    "transformers": TENSOR_ROOMS | {"notebook"},
    "safetensors": TENSOR_ROOMS,
    "accelerate": TENSOR_ROOMS,
    "tokenizers": TENSOR_ROOMS,
    "greenlet": {"capture"},
    "fla": TENSOR_ROOMS,
    "matplotlib": {"plots", "widgets"},
    "ipywidgets": {"widgets"},
    "papermill": {"execution"},
    "jupytext": {"execution"},
    "nbclient": {"execution"},
    "jupyter_client": {"execution"},
    "typer": {"cli"},
}


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, also inside functions and `if TYPE_CHECKING`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.ImportFrom():
                yield node.lineno, "a relative import"


def complaints(source: str, room: str) -> list[str]:
    """What the imports of a file in `room` break, one line each."""
    found = []
    for line, name in imported(source):
        library, _, inside = name.partition(".")
        target = inside.partition(".")[0]
        if name == "a relative import":
            found.append(f"line {line}: {name}; write the whole name, so that arrows can be read")
        elif library == "qwenlab" and target not in ROOMS and target != "__version__":
            found.append(f"line {line}: imports {name}; import a name from the file it lives in")
        elif library == "qwenlab" and {target, room} == APART:
            found.append(f"line {line}: {room} imports {target}; put what both need into capture")
        elif library == "qwenlab" and target in ROOMS:
            if ROOMS.index(target) > ROOMS.index(room) or (
                room in ("__init__", "errors") and target not in (room, "renamed")
            ):
                found.append(f"line {line}: {room} imports {target}, which comes after it")
        elif room not in ALLOWED_IN.get(library, ROOMS):
            found.append(f"line {line}: {room} imports {library}, which belongs in {sorted(ALLOWED_IN[library])}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_follow_the_arrows(file):
    assert room_of(file) in ROOMS, f"{room_of(file)} is a new room: give it its place in ROOMS, DESIGN and a record"
    assert complaints(file.read_text(), room_of(file)) == []


@pytest.mark.parametrize(
    ("source", "room", "complaint"),
    [
        ("import torch", "stats", "stats imports torch"),
        ("def f():\n    import torch.nn as nn", "plots", "line 2: plots imports torch"),
        ("from matplotlib import pyplot", "stats", "stats imports matplotlib"),
        ("import papermill", "experiments", "experiments imports papermill"),
        ("from qwenlab.probes.session import watch", "checkpoint", "checkpoint imports probe"),
        ("if TYPE_CHECKING:\n    from qwenlab import plots", "stats", "stats imports plots"),
        ("from qwenlab.testing import tiny", "experiments", "experiments imports testing"),
        ("from qwenlab.interventions.values import zero", "probes", "probes imports interventions; put what both need"),
        ("from qwenlab.probes.base import Probe", "interventions", "interventions imports probes; put what both need"),
        ("from qwenlab.errors import QwenlabError", "__init__", "__init__ imports errors"),
        ("from qwenlab import open", "experiments", "import a name from the file it lives in"),
        ("import qwenlab", "cli", "import a name from the file it lives in"),
        ("from . import errors", "probes", "a relative import"),
    ],
)
def test_a_wrong_arrow_is_seen(source, room, complaint):
    (line,) = complaints(source, room)
    assert complaint in line


@pytest.mark.parametrize(
    ("source", "room"),
    [
        ("import torch", "probes"),
        ("from qwenlab.checkpoint.sites import Site", "probes"),
        ("from qwenlab.errors import QwenlabError", "checkpoint"),
        ("from qwenlab.record.recording import Recording", "probes"),
        ("from qwenlab import __version__", "record"),
        ("from qwenlab.probes import watch\nimport torch", "testing"),
    ],
)
def test_a_right_arrow_is_not(source, room):
    assert complaints(source, room) == []


def circles(sources: Mapping[str, str]) -> set[tuple[str, ...]]:
    """The groups of modules that import one another; `sources` maps the full name of each module to its code."""
    modules, arrows = list(sources), []
    for number, module in enumerate(modules):
        for _, name in imported(sources[module]):
            while name and name not in sources:
                name = name.rpartition(".")[0]
            if name and name != module:
                arrows.append((number, modules.index(name)))
    rows, columns = zip(*arrows, strict=True)
    graph = csr_array(([1] * len(arrows), (rows, columns)), shape=(len(modules), len(modules)))
    _, labels = connected_components(graph, connection="strong")
    groups = [tuple(sorted(m for m, other in zip(modules, labels, strict=True) if other == one)) for one in set(labels)]
    return {group for group in groups if len(group) > 1}


def test_files_do_not_import_one_another_in_circles():
    """Imports inside functions and under `if TYPE_CHECKING` count too."""
    names = {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts): file for file in FILES}
    assert circles({name.removesuffix(".__init__"): file.read_text() for name, file in names.items()}) == set()


def test_a_circle_is_found():
    sources = {
        "p.a": "from p.b import x",
        "p.b": "def f():\n    from p import c",
        "p.c": "if TYPE_CHECKING:\n    from p.a import T",
        "p.d": "from p.a import x\nimport torch",
    }
    assert circles(sources) == {("p.a", "p.b", "p.c")}
    assert circles(sources | {"p.c": ""}) == set()
