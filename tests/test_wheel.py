"""The built wheel, installed where there is no clone: the command, the demo, and the tour as a hosted notebook."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pytest

import qwenlab as ql
from qwenlab.execution import new_notebook

ROOT = Path(__file__).parents[1]
NAMES = {file.stem for file in (ROOT / "notebooks").glob("*.py")}

pytestmark = pytest.mark.slow


class Elsewhere:
    """An environment with the wheel in it, and an empty folder in which its commands run."""

    def __init__(self, environment: Path, folder: Path) -> None:
        self.bin, self.folder = environment / "bin", folder
        (self.wheel,) = environment.parent.glob("*.whl")
        self.variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
            "COLUMNS": "140"
        }

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the folder."""
        return subprocess.run(
            [self.bin / program, *map(str, arguments)],
            **dict(cwd=self.folder, env=self.variables, capture_output=True, text=True),
        )


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The wheel, laid over the packages of this environment; their .pth files, so also the clone, are left out."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    built = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *built, "--wheel-dir", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "environment", with_pip=False)
    python = folder / "environment" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", where], check=True, capture_output=True, text=True).stdout.strip())
    beneath = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "beneath.pth").write_text("\n".join(beneath) + "\n")
    installed = ["--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*pip, "--python", python, "install", *installed, wheel], check=True)
    return folder / "environment"


@pytest.fixture
def elsewhere(environment, tmp_path):
    return Elsewhere(environment, tmp_path)


def test_it_is_the_wheel_that_is_imported(elsewhere):
    code = "import qwenlab, sys; print(qwenlab.__file__, *sys.path, sep='\\n')"
    file, *path = elsewhere.run("python", "-c", code).stdout.splitlines()
    assert Path(file).is_relative_to(elsewhere.bin.parent)
    assert str(ROOT) not in path


def test_the_demo_runs(elsewhere):
    done = elsewhere.run("qwenlab", "demo")
    assert done.returncode == 0, done.stderr
    assert "router entropy" in done.stdout
    out = elsewhere.folder / "runs" / "demo"
    assert {"10_layers.ipynb", "recording.nc", "layers.png"} <= {file.name for file in out.iterdir()}
    assert ql.Recording.open(out / "recording.nc").checkpoint == "toy-moe"


def test_every_notebook_is_in_it(elsewhere):
    done = elsewhere.run("qwenlab", "new", "none_such", "study.ipynb")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert set(done.stderr.partition("Choose one of: ")[2].strip(" .\n").split(", ")) == NAMES
    assert list(elsewhere.folder.iterdir()) == []


def test_a_new_notebook_is_a_copy_to_work_in(elsewhere, tmp_path_factory):
    done = elsewhere.run("qwenlab", "new", "10_layers", "my_study.ipynb")
    path = elsewhere.folder / "my_study.ipynb"
    assert (done.returncode, done.stdout.strip()) == (0, str(path))
    ours = new_notebook("10_layers", tmp_path_factory.mktemp("clone") / "my_study.ipynb")
    sources = [[(cell.cell_type, cell.source) for cell in nbformat.read(each, 4).cells] for each in (path, ours)]
    assert sources[0] == sources[1]
    assert nbformat.read(path, 4).metadata.kernelspec.name == "python3"


@pytest.mark.parametrize(
    "changed", [{}, dict(texts_per_domain=2, max_tokens=32, out="results")], ids=["as it is", "out"]
)
def test_the_tour_runs_as_a_hosted_notebook(changed, elsewhere):
    """Its copy from the wheel, below a cell that installs the wheel, run by Jupyter alone in an empty folder."""
    path = elsewhere.folder / "tour.ipynb"
    assert elsewhere.run("qwenlab", "new", "00_tour", path.name).returncode == 0
    tour = nbformat.read(path, 4)
    install = f"%pip install --no-index --no-deps --force-reinstall {elsewhere.wheel}"
    tour.cells.insert(0, nbformat.v4.new_code_cell(install))
    parameters = next(cell for cell in tour.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source += "".join(f"\n{name} = {value!r}" for name, value in changed.items())
    nbformat.write(tour, path)

    execute = "from nbclient.cli import main; main()"
    done = elsewhere.run("python", "-c", execute, "--inplace", path.name)
    assert done.returncode == 0, done.stderr
    first, *others = (cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    assert "Successfully installed qwenlab" in "".join(output.text for output in first.outputs)
    assert all(cell.execution_count for cell in others)
    made = {str(file.relative_to(elsewhere.folder)) for file in elsewhere.folder.rglob("*") if file.is_file()}
    figures = {f"results/{name}.{ending}" for name in ("half_life", "layers") for ending in ("png", "svg")}
    assert made == {"tour.ipynb"} | (figures | {"results/recording.nc"} if "out" in changed else set())


def test_the_tour_points_at_nothing_of_the_clone():
    assert "](" not in (ROOT / "notebooks" / "00_tour.py").read_text()
