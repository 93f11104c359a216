"""Plain English in docstrings, comments, messages, notebooks and pages: words and idioms that have a better word."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Pattern: the better word. A pattern that has many false alarms does not belong here.
BETTER = {
    r"\btold\b": "say what happens: 'passed to', 'described', 'distinguished'",
    r"\bsaid of\b": "define the noun",
    r"\bhangs? on\b": "depend on",
    r"\bso many\b": "n, or the number of",
    r"(?<!\b[Tt]here )\b(?:is|are|was|were) no "
    r"(?!more\b|less\b|other\b|(?:long|lat|earli|short|bett|larg|small|few|low|high)er\b)[a-z]": "is not a",
    r"\bbeside\b": "next to, with, compared with",
    r"\bstands? (?:for|in|at|around|beside|apart)\b": "is in, means, surrounds",
    r"\bin the place of\b": "instead of, or replace",
    r"\bas it were\b": "leave it out",
    r"\bmend(?:s|ed)?\b": "fix",
    r"\bwhole numbers?\b": "integer",
    r"\bnone of its\b": "no",
    r"\bwhat (?:is|was|are|were) (?:told|said|asked|kept|held|made|given)\b": "name the thing",
    r"\bmain model\b": "target model",
    r"\b[Tt]runk\b(?![.`_])": "target model",
    r"\brooms?\b": "package or folder",
    r"\bcompany\b": "use the field's term, such as co-activation",
    # "a row a run": per
    r"\b(?:rows?|values?|bytes|FLOPs|tokens?|steps?|experts?|drafts?|dataset|item|page|file|sentence|ms|nats?|bits?)"
    r" an? (?:layer|row|step|token|head|text|round|prompt|run|byte|probe|value|second|draft|item|package)\b": "per",
}

# (file, pattern) where a hit is right, such as the name of an attribute.
ALLOWED: set[tuple[str, str]] = {
    ("qwenlab/tasks/token_classes.py", r"\bbeside\b"),  # a list of function words
    ("experiments/toy-checkpoints/export.py", r"\b[Tt]runk\b(?![.`_])"),  # a key of the training's files
    ("experiments/toy-checkpoints/train.py", r"\b[Tt]runk\b(?![.`_])"),
    ("evidence/reference/names.py", r"\b[Tt]runk\b(?![.`_])"),  # an old name
}

LINK = re.compile(r"\]\([^)]*\)")  # the target of a Markdown link: file names stay
PAGES = {".md", ".j2", ".yaml", ".yml", ".sh", ".sbatch", ".cff"}


def texts_of(file: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of each line for readers: a page whole; comments and strings of Python code."""
    source = file.read_text()
    if file.suffix != ".py":
        yield from enumerate(source.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from enumerate(node.value.splitlines(), node.lineno)


def complaints(lines: Iterator[tuple[int, str]], file: str) -> list[str]:
    """One line per hit: where, the words found, and the better word."""
    return [
        f"{file}:{number}: {found[0]!r}: {better}"
        for number, text in lines
        for pattern, better in BETTER.items()
        if (file, pattern) not in ALLOWED
        for found in re.finditer(pattern, LINK.sub("]", text))
    ]


def files() -> list[str]:
    """Every file with text for readers, except decision records (history) and data."""
    found = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CITATION.cff"]
    for folder in ("qwenlab", "docs", "notebooks", "experiments", "evidence", "benchmarks"):
        found += [file for file in (ROOT / folder).rglob("*") if file.suffix in {".py", *PAGES}]
    names = sorted(file.relative_to(ROOT).as_posix() for file in found)
    skipped = re.compile(r"^docs/(decisions/\d|reference/generated/|_)|/(runs|data|\.ipynb_checkpoints)/")
    return [name for name in names if not skipped.search(name)]


@pytest.mark.parametrize("file", files())
def test_plain_english(file):
    found = complaints(texts_of(ROOT / file), file)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the half-life hangs on the length", "hangs on"),
        ("a dtype that is no number", "is no n"),
        ("one row a run", "row a run"),
        ("the main model verifies", "main model"),
        ("6 bytes a token", "bytes a token"),
        ("kernels have a room of their own", "room"),
    ],
)
def test_a_tic_is_reported(text, words):
    (complaint,) = complaints(iter([(7, text)]), "page.md")
    assert complaint.startswith(f"page.md:7: {words!r}: ")


@pytest.mark.parametrize("text", ["it is no longer there", "there is no token", "a row of a table", "`head.trunk`"])
def test_ordinary_words_pass(text):
    assert complaints(iter([(1, text)]), "page.md") == []
