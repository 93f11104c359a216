"""What the command `qwenlab` consists of, and how it ends."""

from __future__ import annotations

import signal
from types import FrameType

import typer
from rich.console import Console
from rich.text import Text

from qwenlab.cli import ablating, checkpoints, experiments, store
from qwenlab.errors import QwenlabError

app = typer.Typer(
    help="A workbench for hybrid attention: what the layers of a checkpoint are, do and cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    checkpoints.anatomy,
    checkpoints.profile,
    checkpoints.acceptance,
    checkpoints.trace,
    ablating.ablate,
    checkpoints.demo,
    checkpoints.new,
    experiments.run,
):
    app.command()(command)
app.add_typer(store.app, name="runs")


def main() -> None:
    """Run the command. An error of qwenlab's is its message in red, without a traceback, and exit status 2.

    SIGTERM, with which schedulers ask a job to end, does what Ctrl-C does: what runs is ended cleanly.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except QwenlabError as error:
        Console(stderr=True).print(Text(f"{type(error).__name__}: {error}", "red"), soft_wrap=True)
        raise SystemExit(2) from None


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
