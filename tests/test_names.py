"""A class name means one thing: it is defined once in the package."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "qwenlab"
CAP_WORDS = re.compile(r"_?[A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*")

REPEATED = {"Part"}
"""Names with two definitions today. Remove a name here once it has one; never add one."""


def class_names(source: str) -> Iterator[str]:
    """Classes and type aliases at the top level of a file, without a leading underscore."""
    for node in ast.parse(source).body:
        match node:
            case ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case ast.Assign(targets=targets):
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            case _:
                names = []
        yield from (name.removeprefix("_") for name in names if CAP_WORDS.fullmatch(name))


def repeated(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Class name -> the files that define it, if these are several."""
    files = defaultdict(list)
    for file, source in sources.items():
        for name in class_names(source):
            files[name].append(file)
    return {name: places for name, places in files.items() if len(places) > 1}


def test_a_class_name_is_defined_once():
    found = repeated({str(file.relative_to(PACKAGE)): file.read_text() for file in sorted(PACKAGE.rglob("*.py"))})
    assert found.keys() == REPEATED, {name: files for name, files in found.items() if name not in REPEATED}


def test_a_repeated_name_is_found():
    sources = {
        "a.py": "class Source: pass\nSIZE = 1\nlocal = 2",
        "b.py": "_Source = dict[str, int]\nSIZE = 1\nlocal = 2",
        "c.py": "Pair: TypeAlias = tuple[int, int]\ndef f():\n    class Source: pass",
    }
    assert repeated(sources) == {"Source": ["a.py", "b.py"]}
