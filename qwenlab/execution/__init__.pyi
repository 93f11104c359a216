from .engine import Engine as Engine, release as release
from .notebook_runner import run_notebook as run_notebook
from .parameters import Parameters as Parameters
from .shipped_notebooks import new_notebook as new_notebook
