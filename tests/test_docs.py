"""The pages that list things list all of them."""

import importlib
import json
import re
from pathlib import Path

from qwenlab import errors

DOCS = Path(__file__).parents[1] / "docs"


def test_every_error_has_a_line():
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and name != "QwenlabError"}
    explained = re.findall(r"`(\w+)`(?=[^|]*\| .+\|)", (DOCS / "errors.md").read_text())
    assert sorted(explained) == sorted(defined)


def test_every_decision_is_listed():
    records = {file.name for file in (DOCS / "decisions").glob("0*.md")}
    assert set(re.findall(r"\]\((0.+?\.md)\)", (DOCS / "decisions" / "README.md").read_text())) == records


def test_every_path_exists():
    root = DOCS.parent
    pages = [root / "README.md", *(page for page in DOCS.rglob("*.md") if "generated" not in page.parts)]
    missing = [
        f"{page.relative_to(root)}: {path}"
        for page in sorted(pages)
        for path in re.findall(
            r"(?<![\w./:-])(?:qwenlab|tests|evidence|benchmarks|notebooks|docs)/[\w./*-]*[\w*]", page.read_text()
        )
        if not any(root.glob(path)) and not any(root.glob(f"{path}.py"))
    ]
    assert not missing, "\n".join(missing)


def test_a_word_has_one_definition():
    words = re.findall(r"^\| ([^|]+?) \|", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    assert len(words) > 100
    assert {word for word in words if words.count(word) > 1} <= {"term"}


def test_the_reference_has_a_page_for_each_package():
    listed = re.findall(r"^   (qwenlab(?:\.\w+)?)$", (DOCS / "reference" / "index.md").read_text(), re.MULTILINE)
    frozen = json.loads(Path(__file__).with_name("public_api.json").read_text())
    assert sorted(listed) == sorted({name for name in frozen if frozen[name]} | {"qwenlab.errors"})


def test_a_docstring_in_columns_becomes_a_definition_list(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    restructured = importlib.import_module("plain_docstrings").restructured
    text = "A *b* of `ql.open`.\n\nby     one\n       two\nlevel  three\n\n    code(**x)"
    shown = " ".join("\n".join(restructured(text)).split())
    assert shown == r"A \*b\* of :py:obj:`ql.open <qwenlab.open>`\ . ``by`` one two ``level`` three :: code(**x)"
