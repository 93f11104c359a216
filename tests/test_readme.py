"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import pytest

import qwenlab as ql
from tests.experiments.conftest import written

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_readme_shows_code():
    assert len(BLOCKS) == 5


@pytest.mark.parametrize(
    "block",
    [pytest.param(each, marks=pytest.mark.slow) if "ql.decode" in each else each for each in BLOCKS],
    ids=["look", "change", "train", "draft", "compare"],
)
def test_the_code_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):  # what the sweep of the README would have left
        rows = [("half_life", {"layer": layer}, 3.0 + number, "token") for layer in range(6)]
        written(tmp_path / "runs", number, rows, experiment="layers-by-length")
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize(("page", "count"), [("decoding", 2), ("ablations", 2)])
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
    assert set(re.findall(r"make ([a-z]+)", README)) - {"their"} <= {*targets, "sure"}
