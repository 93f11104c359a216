"""Compute the reference results of two checkouts and compare them.

`python -m evidence.reference --before PATH --after PATH` prints one line for each case. It exits with 1 if a case
differs, fails, is empty, or is missing on one side. Both checkouts run the cases of this copy of the script.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from evidence.reference.compare import Comparison, compare, empty
from evidence.reference.results import load

ROOT = Path(__file__).parents[2]

# qwenlab is the checkout's, which may have an older `evidence`: this one is imported from ROOT, first on the path then.
CHILD = """
import sys
import qwenlab
sys.path.insert(0, sys.argv[1])
from evidence.reference.compute import main
del sys.path[0]
main(*sys.argv[2:])
"""
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}

app = typer.Typer(add_completion=False)


@app.command()
def main(
    before: Annotated[Path, typer.Option(help="checkout with the old code", exists=True, file_okay=False)],
    after: Annotated[Path, typer.Option(help="checkout with the new code", exists=True, file_okay=False)],
    out: Annotated[Path | None, typer.Option(help="folder for the results; by default a temporary one")] = None,
    only: Annotated[str, typer.Option(help="regular expression: compute only cases with such a name")] = "",
    reuse: Annotated[bool, typer.Option(help="use the results of BEFORE that OUT has from an earlier call")] = False,
    jobs: Annotated[int, typer.Option(help="checkouts computed at the same time, each with one thread", max=2)] = 1,
) -> None:
    """Compute the reference results of both checkouts, and compare them."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = (out or Path(temporary)).absolute()
        sides = {"before": before.absolute(), "after": after.absolute()}
        if reuse and any((folder / "before").glob("*.pickle")):
            del sides["before"]
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda side: compute(sides[side], folder / side, only), sides))
        differ = report(folder / "before", folder / "after", only)
    raise typer.Exit(1 if differ else 0)


def compute(checkout: Path, folder: Path, only: str) -> None:
    """Compute the cases with the qwenlab of a checkout, in a process of their own; one file for each case."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.pickle"):
        old.unlink()
    fixed = {"PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(checkout)}
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-P", "-c", CHILD, str(ROOT), str(checkout), str(folder), only],
        cwd=checkout,
        env=os.environ | ONE_THREAD | fixed,
        check=True,
    )
    typer.echo(f"{checkout}: {len(list(folder.glob('*.pickle')))} cases, {time.perf_counter() - began:.0f} s")


def report(before: Path, after: Path, only: str = "") -> int:
    """Print one line for each case, and a summary. Returns how many are not equal; 1 if there are no cases."""
    found = {file.stem for folder in (before, after) for file in folder.glob("*.pickle")}
    names = sorted(name for name in found if re.search(only, name.replace("+", "/")))
    arrays, failed, intended = 0, 0 if names else 1, Counter[str]()
    for name in names:
        case = compared(before / f"{name}.pickle", after / f"{name}.pickle")
        arrays += case.arrays
        failed += not case.equal
        intended += case.intended
        typer.echo(f"{'equal  ' if case.equal else 'DIFFERS'} {name.replace('+', '/')}: {case}")
    for why, count in intended.most_common():
        typer.echo(f"intended: {count} times, {why}")
    typer.echo(f"{len(names)} cases with {arrays} arrays, {failed} not equal")
    return failed


def compared(before: Path, after: Path) -> Comparison:
    """The comparison of one case; a case that only one side has is compared with nothing."""
    sides = (load(file) if file.exists() else empty() for file in (before, after))
    return compare(*sides, case=after.stem.replace("+", "/"))


if __name__ == "__main__":
    app()
