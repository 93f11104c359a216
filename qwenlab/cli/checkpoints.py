"""Commands about one checkpoint: anatomy, profile, acceptance, trace, demo; and a notebook to begin with: new."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qwenlab import kernels, record, runs, stats, tasks
from qwenlab.checkpoint.anatomy import anatomy as anatomy_of
from qwenlab.checkpoint.show import COLOURS, LABELS
from qwenlab.errors import BadArgument

if TYPE_CHECKING:
    import xarray as xr

Source = Annotated[str, typer.Argument(help="A toy, a folder, or a name on the hub: Qwen/Qwen3.6-35B-A3B.")]
Texts = Annotated[
    list[Path] | None,
    typer.Option(
        help="A text file; its name is its label. Repeat for more. Default: the texts that ship.",
        exists=True,
        dir_okay=False,
    ),
]
Device = Annotated[str | None, typer.Option(help="Where the model goes, such as cuda. Default: the CPU.")]
Dtype = Annotated[str | None, typer.Option(help="Of the weights in memory. Default: the checkpoint's own.")]

_COLUMNS = ("time_share", "half_life", "attention_distance", "router_entropy")


def anatomy(
    name: Annotated[str, typer.Argument(help="A toy, a folder, a config.json, or a published name: Qwen3.6-27B.")],
    strict: Annotated[bool, typer.Option(help="Fields of the config that are not known are errors.")] = False,
) -> None:
    """What a checkpoint is made of and what it costs, from its config alone."""
    Console().print(anatomy_of(name, strict=strict))


def profile(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for recording.nc and the figures.", file_okay=False)],
    text: Texts = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of a passage, into which files are cut.", min=1)] = 512,
    passages: Annotated[int, typer.Option(help="Passages read of each file.", min=1)] = 16,
    batch_size: Annotated[int, typer.Option(help="Passages read at a time.", min=1)] = 8,
    decode: Annotated[int, typer.Option(help="Tokens a file that are read one at a time, as in decoding.", min=0)] = 16,
    probes: Annotated[
        str | None,
        typer.Option(help="Comma-separated: deltanet,attention,routing,residual,timing,memory. Default: all."),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Watch a checkpoint read text: a recording, figures, and a table of its layers."""
    done = recipes.profile(
        source,
        read_texts(text) if text else {domain: tasks.texts(domain, passages) for domain in tasks.DOMAINS},
        out,
        probes=None if probes is None else [name.strip() for name in probes.split(",")],
        max_tokens=max_tokens,
        passages=passages,
        batch_size=batch_size,
        decode=decode,
        device=device,
        dtype=dtype,
    )
    _report(done.recording, done.figures)


def acceptance(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for recording.nc and the figures.", file_okay=False)],
    text: Texts = None,
    depth: Annotated[int, typer.Option(help="Drafts a round, at most.", min=1)] = 3,
    prompts: Annotated[int, typer.Option(help="Prompts of each file; intervals need two or more.", min=1)] = 8,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.", min=1)] = 64,
    new_tokens: Annotated[int, typer.Option(help="Tokens decoded after each prompt.", min=2)] = 64,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Draft with the MTP head and verify: is it lossless, how many drafts are accepted, does it pay?"""
    done = recipes.acceptance(
        source,
        read_texts(text) if text else {domain: tasks.texts(domain, prompts) for domain in tasks.DOMAINS},
        out,
        depth=depth,
        prompts=prompts,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        device=device,
        dtype=dtype,
    )
    console = Console()
    console.print(repr(done.lossless), highlight=False, markup=False)
    console.print(_rates(done))
    best, times = int(done.speedup["best_depth"]), float(done.speedup["speedup"].max())
    console.print(
        f"{f'{best} drafts a round are' if best else 'No depth is'} predicted to pay best here: "
        f"{times:.2f} times the speed of plain decoding"
    )
    for path in (done.recording, *done.figures):
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)


def trace(
    source: Source,
    text: Annotated[list[Path], typer.Option(help="A text file; its name is its label.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="File for the trace, such as trace.nc.", dir_okay=False)],
    depth: Annotated[int, typer.Option(help="Drafts at each place.", min=1)] = 3,
    window: Annotated[int, typer.Option(help="Tokens of a window; each is read for itself.", min=2)] = 1024,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Every draft at every place of texts of any length, in a few parallel passes: kept, and its rates by depth."""
    files = read_texts(text)
    traced = recipes.trace(source, files, out, depth=depth, window=window, device=device, dtype=dtype)
    agreed = stats.agreement(traced.recording())
    table = Table(
        *("depth", "teacher-forced agreement", "its interval", "acceptance length,\nteacher-forced replay"),
        box=box.SIMPLE_HEAD,
        title=f"{agreed.attrs['checkpoint']}: {traced.dataset.sizes['token']:,} given tokens, rule greedy, fixed depth",
        title_justify="left",
    )
    for place in range(1, depth + 1):
        rate = agreed.sel(draft=place)
        low, high = rate["teacher_forced_interval"].values
        length = stats.acceptance(traced.replay(depth=place))["acceptance_length"]
        table.add_row(
            str(place),
            f"{float(rate['teacher_forced']):.3f}",
            f"[{low:.3f}, {high:.3f}]",
            f"{float(length):.2f} tokens",
        )
    Console().print(table)
    Console().print(str(out.resolve()), soft_wrap=True, highlight=False, markup=False)


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the executed notebook, its recording and its figures.", file_okay=False)
    ] = Path("runs/demo"),
    name: Annotated[str, typer.Option("--checkpoint", help="What the notebook runs on.")] = "toy-moe",
) -> None:
    """Run notebooks/10_layers on a toy that ships, and print what it found of the layers."""
    done = recipes.demo(name, out)
    _report(done.recording, (done.notebook, *done.figures))


def new(
    name: Annotated[str, typer.Argument(help="A notebook that ships: 00_tour, 10_layers, 20_routing, ...")],
    path: Annotated[Path, typer.Argument(help="The copy, such as my_study.ipynb. It must not exist yet.")],
) -> None:
    """Copy a notebook that ships with qwenlab, to change and run as your own."""
    Console().print(str(kernels.new_notebook(name, path)), soft_wrap=True, highlight=False, markup=False)


def read_texts(files: list[Path]) -> dict[str, str]:
    """The text of each file under its name without the ending, or under its path where two names would be the same."""
    stems = [file.stem for file in files]
    return {file.stem if stems.count(file.stem) == 1 else str(file): _text(file) for file in files}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadArgument(f"--text: {file} is no UTF-8 text: {error}.\nConvert it, or leave it out.") from error


def _report(recording: Path, others: tuple[Path, ...]) -> None:
    """The table of the layers, and where everything is."""
    console = Console()
    seen = record.Recording.open(recording)
    if any("layer" in seen[node].dims for node in seen):
        console.print(_table(stats.layer_table(seen)))
    for path in (recording, *others):
        console.print(str(path), soft_wrap=True, highlight=False, markup=False)


def _rates(found: recipes.Acceptance) -> Table:
    """Acceptance by label and of all, each rate under its own name with its interval."""
    attrs, level = found.rates.attrs, found.rates.attrs["level"]
    table = Table(
        *("texts", "prompts", "rounds", "acceptance length\n(tokens a round)", "accepted /\ndrafted"),
        *("accepted / rounds,\nfirst place", "accepted / tested,\nlast place"),
        box=box.SIMPLE_HEAD,
        title=f"{found.rates.attrs['checkpoint']}: rule {attrs['rule']}, depth {attrs['depth']}, intervals {level:.0%}",
        title_justify="left",
    )
    rows = [(str(name), found.by_label.sel(label=name)) for name in found.by_label["label"].values]
    for name, rates in (*rows, ("all", found.rates)):
        shown = [_number(rates, "acceptance_length"), _number(rates, "draft_efficiency")]
        shown += [_number(rates.isel(draft=0), "unconditional"), _number(rates.isel(draft=-1), "conditional")]
        table.add_row(name, str(int(rates["prompts"])), str(int(rates["rounds"])), *shown)
    return table


def _number(data: xr.Dataset, name: str) -> str:
    low, high = (float(data[f"{name}_interval"].sel(bound=bound)) for bound in ("low", "high"))
    return f"{float(data[name]):.2f} [{low:.2f}, {high:.2f}]"


def _table(layers: xr.Dataset) -> Table:
    """The columns that say most, of those that were measured; a dash where a layer has no such thing."""
    shown = [layers[name] for name in _COLUMNS if name in layers]
    table = Table(
        "layer", "kind", box=box.SIMPLE_HEAD, title=f"The layers of {layers.attrs['checkpoint']}", title_justify="left"
    )
    for column in shown:
        table.add_column(f"{column.attrs['long_name']}\n({column.attrs['units']})", justify="right")
    for index, (layer, kind) in enumerate(zip(layers["layer"].values, layers["kind"].values, strict=True)):
        numbers = [float(column[index]) for column in shown]
        cells = ["–" if math.isnan(number) else f"{number:.3g}" for number in numbers]
        table.add_row(str(layer), Text(LABELS[kind], COLOURS[kind]), *cells)
    return table
