"""The command `qwenlab`: its subcommands, and how errors end it."""

from __future__ import annotations

import os
import signal
from types import FrameType

import typer
from rich.console import Console
from rich.text import Text

from qwenlab import recipes
from qwenlab.cli import checkpoints, experiments
from qwenlab.cli.command import add_recipe
from qwenlab.errors import QwenlabError

app = typer.Typer(
    help="A workbench for hybrid attention: inspect, profile and ablate checkpoints, and run experiments.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(checkpoints.anatomy)
app.command()(checkpoints.new)
for recipe, report in (
    (recipes.profile, checkpoints.print_profile),
    (recipes.acceptance, checkpoints.print_acceptance),
    (recipes.trace, checkpoints.print_trace),
    (recipes.ablate, checkpoints.print_ablations),
    (recipes.demo, checkpoints.print_demo),
    (recipes.make_checkpoint, checkpoints.print_made),
):
    add_recipe(app, recipe, report)
app.command()(experiments.run)
app.add_typer(experiments.runs_app, name="runs")


def main() -> None:
    """Run the command. An error is its message in red, without a traceback.

    Exit status: 2 for errors of qwenlab and of files, 1 for others, whose traceback QWENLAB_TRACEBACK=1 shows. SIGTERM,
    with which schedulers end a job, acts as Ctrl-C does: what runs is ended cleanly.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except Exception as error:
        if os.environ.get("QWENLAB_TRACEBACK"):
            raise
        expected = isinstance(error, QwenlabError | OSError)
        hint = "" if expected else "\nThis is unexpected: set QWENLAB_TRACEBACK=1 for the traceback."
        Console(stderr=True).print(Text(f"{type(error).__name__}: {error}{hint}", "red"), soft_wrap=True)
        raise SystemExit(2 if expected else 1) from None


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
