"""The code in README.md and docs runs, and prints the results that README.md shows."""

import re
from pathlib import Path

import pytest

import qwenlab as ql
from tests.experiments.conftest import written

README = (Path(__file__).parents[1] / "README.md").read_text()
SECTIONS = {section.partition("\n")[0]: section for section in README.split("\n## ") if "```python" in section}
CODE = re.compile(r"^```python\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]\d+)?")


def test_the_readme_shows_code():
    shown = {title: [bool(output) for _, output in CODE.findall(section)] for title, section in SECTIONS.items()}
    assert shown["# qwenlab"] == [False, True, True, True, True]
    assert list(shown)[1:] == [
        "Look inside a model",
        "Intervene",
        "Watch a training loop",
        "Draft and verify",
        "Experiments",
    ]
    assert README.count("```python") == 10


def assert_printed(shown, printed):
    """Each shown line is part of a printed one; numbers may differ by 10 % or 0.05, as they do between machines."""
    for line in filter(lambda line: line != "...", shown.splitlines()):
        pattern = NUMBER.sub(lambda _: NUMBER.pattern, re.escape(line).replace(r"\.", ".").replace(r"\-", "-"))
        matches = [found[0] for found in (re.search(pattern, each) for each in printed.splitlines()) if found]
        assert matches, f"README.md shows\n{line}\nand the code printed\n{printed}"
        numbers = [float(number) for number in NUMBER.findall(line)]
        assert any(
            [float(number) for number in NUMBER.findall(match)] == pytest.approx(numbers, rel=0.1, abs=0.05)
            for match in matches
        ), f"README.md shows\n{line}\nand the code printed\n{matches}"


@pytest.mark.parametrize("title", SECTIONS)
def test_the_code_runs(title, tmp_path, monkeypatch, capsys):
    """The code blocks of a section run one after another, and print the text that the README shows below them."""
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):  # the store that the sweep of the README would leave
        rows = [("half_life", {"layer": layer}, 3.0 + number, "token") for layer in range(6)]
        written(tmp_path / "runs", number, rows, experiment="layers-by-length")
    names = {}
    for code, shown in CODE.findall(SECTIONS[title]):
        capsys.readouterr()
        exec(compile(code, "README.md", "exec"), names)
        assert_printed(shown, capsys.readouterr().out)


@pytest.mark.parametrize("printed", ["loss 2.27 nat/token", "1.29 nats"])
def test_another_output_is_noticed(printed):
    assert_printed("1.27 nat/token", "loss 1.29 nat/token")
    with pytest.raises(AssertionError, match=r"README.md shows"):
        assert_printed("1.27 nat/token", printed)


@pytest.mark.parametrize(("page", "count"), [("bigger-than-memory", 3), ("decoding", 2), ("ablations", 2)])
def test_a_page_of_code_runs(page, count):
    """One block after another, as a reader would type them."""
    text = (Path(__file__).parents[1] / "docs" / f"{page}.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == count
    exec(compile("\n".join(blocks), f"{page}.md", "exec"), {"__name__": "page"})


def test_its_spec_is_one(tmp_path):
    (spec,) = re.findall(r"^```yaml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    folder = tmp_path / "half-life"
    folder.mkdir()
    (folder / "spec.yaml").write_text(spec)
    parameters = 'checkpoint: str = "toy-moe"\ncontext: int = 1\nseed: int = 0'
    (folder / "half_life.py").write_text(f'# %% tags=["parameters"]\n{parameters}\n\n# %%\nrecord(half_life=1)\n')
    assert len(ql.experiments.plan(folder).points) == 2 * 4 * 3


def test_its_links_and_make_targets_exist():
    here = Path(__file__).parents[1]
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (here / link).exists(), link
    targets = re.findall(r"^([a-z]+):", (here / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "lab", "wheel", "test"} <= set(re.findall(r"make ([a-z]+)", README)) <= set(targets)
