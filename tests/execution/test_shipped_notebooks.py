"""The notebooks that ship, found in a clone, and copies of them."""

import jupytext
import pytest

from qwenlab.errors import BadArgument, UnknownNotebook
from qwenlab.execution import new_notebook, shipped_notebooks as shipped_notebooks_module
from qwenlab.execution.shipped_notebooks import shipped_notebook, shipped_notebooks


def test_an_editable_install_finds_them_in_the_clone():
    names = list(shipped_notebooks())
    assert names == sorted(names)
    assert {"00_tour", "10_layers", "90_compare"} <= set(names)
    assert shipped_notebook("00_tour").is_file()


def test_a_wheel_has_them_inside_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped_notebooks_module, "files", lambda package: tmp_path / package)
    for folder in (tmp_path / "notebooks", tmp_path / "qwenlab" / "notebooks"):
        folder.mkdir(parents=True)
        for name in ("b.py", "a.py", "c.ipynb"):
            (folder / name).touch()
    inside = tmp_path / "qwenlab" / "notebooks"
    assert shipped_notebooks() == {"a": inside / "a.py", "b": inside / "b.py"}


def test_without_notebooks_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped_notebooks_module, "files", lambda package: tmp_path / package)
    with pytest.raises(UnknownNotebook, match=r"Choose one of: none was installed\."):
        shipped_notebook("00_tour")


def test_an_unknown_name_lists_the_names():
    with pytest.raises(
        UnknownNotebook, match=r"No notebook '11_layers' ships with qwenlab\. Choose one of: 00_tour, .*"
    ):
        shipped_notebook("11_layers")


@pytest.mark.parametrize("name", ["study.ipynb", "new/folder/study.py"])
def test_a_copy_has_the_same_cells(name, tmp_path):
    path = new_notebook("20_routing", tmp_path / name)
    assert path == tmp_path / name
    ours, source = (jupytext.read(each).cells for each in (path, shipped_notebook("20_routing")))
    assert [cell.source for cell in ours] == [cell.source for cell in source]


def test_the_path_of_a_copy_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert new_notebook("00_tour", "study.py") == tmp_path / "study.py"


def test_an_existing_file_is_not_overwritten(tmp_path):
    path = tmp_path / "study.ipynb"
    path.write_text("mine")
    with pytest.raises(BadArgument, match=r"study\.ipynb already exists and is not overwritten\. Give another name"):
        new_notebook("00_tour", path)
    assert path.read_text() == "mine"


def test_another_ending_is_an_error(tmp_path):
    with pytest.raises(BadArgument, match=r"study\.txt is not a notebook\. Give a file that ends in \.ipynb or \.py\."):
        new_notebook("00_tour", tmp_path / "study.txt")
    assert list(tmp_path.iterdir()) == []
