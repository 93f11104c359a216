"""The command `qwenlab ablate`: what each part of a checkpoint does, on which task, beyond random controls."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qwenlab import recipes, stats
from qwenlab.checkpoint.anatomy.display import COLOURS, LABELS
from qwenlab.cli.checkpoints import Device, Dtype, Source, Texts, read_texts
from qwenlab.errors import BadArgument

if TYPE_CHECKING:
    import xarray as xr


Score = Literal["loss", "accuracy", "kl", "agreement"]
Match = Literal["number", "kind", "parameters"]


def ablate(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for recording.nc, findings.md and figures.", file_okay=False)],
    of: Annotated[
        str, typer.Option(help="Comma-separated: layer,mixer,mlp,head,expert,gate,kind: one ablation of each.")
    ] = "mixer",
    layers: Annotated[str | None, typer.Option(help="Comma-separated: only parts of these layers.")] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="code, prose, arithmetic, recall, mqar:PAIRS, needle:LENGTH[:DEPTH], copying:LENGTH, "
            "induction:LENGTH. Repeat for more. Default: code, prose, mqar:8."
        ),
    ] = None,
    text: Texts = None,
    count: Annotated[int, typer.Option(help="Sequences of each task; intervals need two or more.", min=1)] = 16,
    max_tokens: Annotated[int, typer.Option(help="Tokens of a text, or of a passage of a file.", min=2)] = 256,
    score: Annotated[Score, typer.Option(help="What is held against the unedited model.")] = "loss",
    controls: Annotated[int, typer.Option(help="Random controls of each ablation; 0 for none.", min=0)] = 6,
    match: Annotated[Match, typer.Option(help="What controls have as much of.")] = "number",
    seed: Annotated[int, typer.Option(help="Of tasks, controls and intervals.")] = 0,
    keep: Annotated[
        Path | None,
        typer.Option(help="File to save to on the way; a sweep broken off goes on from it.", dir_okay=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Sequences read at a time.", min=1)] = 8,
    rows: Annotated[int, typer.Option(help="Ablations of each task that are printed, the most harmful.", min=1)] = 12,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Ablate parts one by one: what each does for which task, beyond as much taken away elsewhere."""
    done = recipes.ablate(
        source,
        out,
        tasks=task,
        texts=read_texts(text) if text else None,
        of=[name.strip() for name in of.split(",")],
        layers=None if layers is None else _numbers(layers),
        score=score,
        controls=controls,
        match=match,
        count=count,
        max_tokens=max_tokens,
        batch_size=batch_size,
        seed=seed,
        keep=keep,
        device=device,
        dtype=dtype,
    )
    console = Console()
    for name in done.statistics["task"].values:
        console.print(_table(done.statistics, str(name), rows))
    console.print(done.findings.read_text(encoding="utf-8"), soft_wrap=True, highlight=False, markup=False)
    if done.without_controls:
        shown = ", ".join(done.without_controls[:8]) + (", ..." if len(done.without_controls) > 8 else "")
        console.print(
            f"No other parts match {shown}: held against 0 alone.", soft_wrap=True, highlight=False, markup=False
        )
    for path in (done.recording, done.findings, *done.figures):
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)


def _numbers(written: str) -> list[int]:
    try:
        return [int(each) for each in written.split(",")]
    except ValueError as error:
        raise BadArgument(f"--layers {written!r}: give numbers with commas between them, such as 0,3,7.") from error


def _table(found: xr.Dataset, task: str, rows: int) -> Table:
    """The most harmful ablations of a task, every number with its units."""
    ranked = stats.ablation_table(found, task)
    here, count, level = found.sel(task=task), ranked.sizes["ablation"], float(found.attrs["level"])
    units = str(ranked["harm"].attrs["units"])
    in_units = "" if units == "1" else f" ({units})"
    first = "" if count <= rows else f", the first {rows} of {count}"
    table = Table(
        *("ablation", "mixer"),
        *(f"{found['harm'].attrs['long_name']}{in_units}", f"beyond controls{in_units}", "p", "rank", "stands"),
        box=box.SIMPLE_HEAD,
        title=Text(f"{task}: {int(here['texts'])} texts, intervals {level:.0%}, p by Holm{first}"),
        title_justify="left",
    )
    for row in range(min(rows, count)):
        one = ranked.isel(ablation=row)
        low, high, kind = int(one["rank_low"]), int(one["rank_high"]), str(one["kind"].values)
        table.add_row(
            Text(str(one["ablation"].values)),
            Text(LABELS.get(kind, "–"), COLOURS.get(kind, "")),
            _estimate(one, "harm"),
            _estimate(one, "beyond_controls"),
            f"{float(one['p_holm']):.2g}",
            str(low) if low == high else f"{low} to {high}",
            "yes" if bool(one["stands"]) else "no",
        )
    return table


def _estimate(one: xr.Dataset, name: str) -> str:
    """A number with its interval; a dash where there is none."""
    value, low, high = (float(one[each]) for each in (name, f"{name}_low", f"{name}_high"))
    if math.isnan(value):
        return "–"
    return f"{value:+.3g}" + ("" if math.isnan(low) else f" [{low:+.3g}, {high:+.3g}]")
