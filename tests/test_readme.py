"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_readme_shows_code():
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("block", BLOCKS, ids=["look", "train"])
def test_the_code_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_its_links_and_make_targets_exist():
    here = Path(__file__).parents[1]
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (here / link).exists(), link
    targets = re.findall(r"^([a-z]+):", (here / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"make ([a-z]+)", README)) - {"their"} <= {*targets, "sure"}
