"""The command `anatomy`, and what the commands profile, acceptance, trace and demo print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from qwenlab import execution, record, stats
from qwenlab.checkpoint.anatomy.anatomy import anatomy as anatomy_of
from qwenlab.checkpoint.anatomy.display import COLOURS, LABELS
from qwenlab.cli.printing import estimate, print_lines, print_table
from qwenlab.recipes.inputs import FilePath

if TYPE_CHECKING:
    import xarray as xr

    from qwenlab.recipes.acceptance import AcceptanceReport
    from qwenlab.recipes.demo import Demo
    from qwenlab.recipes.profile import Profile
    from qwenlab.speculative.trace.trace import Trace

_COLUMNS = ("time_share", "half_life", "attention_distance", "router_entropy")


def anatomy(
    name: Annotated[str, typer.Argument(help="A toy, a folder, a config.json, or a published name: Qwen3.6-27B.")],
    strict: Annotated[bool, typer.Option(help="Treat unknown fields of the config as errors.")] = False,
) -> None:
    """Show what a checkpoint consists of and what it costs, from its config alone."""
    Console().print(anatomy_of(name, strict=strict))


def new(
    name: Annotated[str, typer.Argument(help="A notebook that ships: 00_tour, 10_layers, 20_routing, ...")],
    path: Annotated[Path, typer.Argument(help="The copy, such as my_study.ipynb. It must not exist yet.")],
) -> None:
    """Copy a notebook that ships with qwenlab, to change and run as your own."""
    Console().print(str(execution.new_notebook(name, path)), soft_wrap=True, highlight=False, markup=False)


def print_profile(done: Profile | Demo) -> None:
    """The layers, with the most telling of the columns that were measured, and the paths of the files."""
    recording = record.Recording.open(done.recording)
    if any("layer" in recording[node].dims for node in recording):
        layers = stats.layer_table(recording)
        columns = [layers[name] for name in _COLUMNS if name in layers]
        heads = ("layer", "kind", *(f"{column.attrs['long_name']}\n({column.attrs['units']})" for column in columns))
        rows: list[list[str | Text]] = [
            [
                str(layer),
                Text(LABELS[kind], COLOURS[kind]),
                *(estimate(float(number), form=".3g") for number in numbers),
            ]
            for layer, kind, *numbers in zip(layers["layer"].values, layers["kind"].values, *columns, strict=True)
        ]
        print_table(heads, rows, f"The layers of {layers.attrs['checkpoint']}", right=range(2, len(heads)))
    print_lines(done.recording, *done.figures)


def print_demo(done: Demo) -> None:
    """What `print_profile` prints, and the path of the executed notebook."""
    print_profile(done)
    print_lines(done.notebook)


def print_acceptance(done: AcceptanceReport) -> None:
    """Losslessness, rates by label, the depth that is predicted to pay best, and the paths of the files."""
    print_lines(repr(done.lossless))
    attrs = done.rates.attrs
    columns = ["texts", "prompts", "rounds", "acceptance length\n(tokens per round)", "accepted /\ndrafted"]
    columns += ["accepted / rounds,\nfirst position", "accepted / tested,\nlast position"]
    labelled = [(str(label), done.by_label.sel(label=label)) for label in done.by_label["label"].values]
    rows = [
        [
            *(label, str(int(rates["prompts"])), str(int(rates["rounds"]))),
            *(_rate(rates, "acceptance_length"), _rate(rates, "draft_efficiency")),
            *(_rate(rates.isel(draft=0), "unconditional"), _rate(rates.isel(draft=-1), "conditional")),
        ]
        for label, rates in (*labelled, ("all", done.rates))
    ]
    title = f"{attrs['checkpoint']}: rule {attrs['rule']}, depth {attrs['depth']}, intervals {attrs['level']:.0%}"
    print_table(columns, rows, title)
    best, times = int(done.speedup["best_depth"]), float(done.speedup["speedup"].max())
    subject = f"{best} drafts per round are" if best else "No depth is"
    print_lines(f"{subject} predicted to pay best here: {times:.2f} times the speed of plain decoding")
    print_lines(done.recording, *done.figures)


def _rate(rates: xr.Dataset, name: str) -> str:
    return estimate(float(rates[name]), *(float(rates[f"{name}_interval"].sel(bound=end)) for end in ("low", "high")))


def print_trace(done: Trace, out: FilePath) -> None:
    """Agreement and acceptance length by depth, and the path of the trace."""
    agreed = stats.agreement(done.recording())
    columns = ("depth", "teacher-forced agreement", "its interval", "acceptance length,\nteacher-forced replay")
    rows = []
    for depth in range(1, done.depth + 1):
        rate = agreed.sel(draft=depth)
        low, high = rate["teacher_forced_interval"].values
        length = float(stats.acceptance(done.replay(depth=depth))["acceptance_length"])
        rows.append([str(depth), f"{rate['teacher_forced']:.3f}", f"[{low:.3f}, {high:.3f}]", f"{length:.2f} tokens"])
    name, tokens = agreed.attrs["checkpoint"], done.dataset.sizes["token"]
    print_table(columns, rows, f"{name}: {tokens:,} tokens, rule greedy, fixed depth")
    print_lines(Path(out).resolve())
