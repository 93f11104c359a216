"""The notebooks that ship with the package: where they are, and copies of them to work in."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from qwenlab.errors import BadArgument, UnknownNotebook

ENDINGS = (".ipynb", ".py")


def shipped_notebooks() -> dict[str, Path]:
    """Name -> path of every shipped notebook, in order.

    A wheel has them inside the package. An editable install finds them in the clone, next to the package.
    """
    package = Path(str(files("qwenlab")))
    inside, beside = package / "notebooks", package.parent / "notebooks"
    folder = inside if inside.is_dir() else beside
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def shipped_notebook(name: str) -> Path:
    """The path of one shipped notebook, such as "10_layers". Raises UnknownNotebook."""
    notebooks = shipped_notebooks()
    if name not in notebooks:
        raise UnknownNotebook(
            f"No notebook {name!r} ships with qwenlab. Choose one of: {', '.join(notebooks) or 'none was installed'}."
        )
    return notebooks[name]


def new_notebook(name: str, path: str | Path, /) -> Path:
    """Copy the shipped notebook `name` to `path`, an .ipynb or a text notebook (.py), and return the absolute path.

    Missing folders are made. Raises UnknownNotebook, and BadArgument for another ending and where the file exists.
    """
    source, path = shipped_notebook(name), Path(path).resolve()
    if path.suffix not in ENDINGS:
        raise BadArgument(f"{path} is not a notebook. Give a file that ends in {' or '.join(ENDINGS)}.")
    if path.exists():
        raise BadArgument(f"{path} already exists and is not overwritten. Give another name, or remove it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    import jupytext  # takes more than a second, which every command would pay

    jupytext.write(jupytext.read(source), path)
    return path
