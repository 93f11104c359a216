"""The commands `anatomy` and `new`, and what the commands of recipes print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from qwenlab import execution, record, stats
from qwenlab.checkpoint.anatomy.anatomy import anatomy as anatomy_of
from qwenlab.checkpoint.anatomy.display import COLOURS, LABELS
from qwenlab.checkpoint.families import KINDS
from qwenlab.cli.printing import estimate, print_lines, print_table
from qwenlab.recipes.inputs import FilePath, Positive

if TYPE_CHECKING:
    import xarray as xr

    from qwenlab.recipes.ablate import Ablated
    from qwenlab.recipes.acceptance import AcceptanceReport
    from qwenlab.recipes.demo import Demo
    from qwenlab.recipes.make_checkpoint import MadeCheckpoint
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
    print_lines(execution.new_notebook(name, path))


def print_profile(done: Profile | Demo) -> None:
    """The layers, with the most telling of the columns that were measured, and the paths of the files."""
    recording = record.Recording.open(done.recording)
    if any("layer" in recording[node].dims for node in recording):
        layers = stats.layer_table(recording)
        columns = [layers[name] for name in _COLUMNS if name in layers]
        heads = ("layer", "kind", *(f"{column.attrs['long_name']}\n({column.attrs['units']})" for column in columns))
        rows: list[list[str | Text]] = [
            [str(layer), Text(LABELS[kind], COLOURS[kind]), *(estimate(float(each), form=".3g") for each in numbers)]
            for layer, kind, *numbers in zip(layers["layer"].values, layers["kind"].values, *columns, strict=True)
        ]
        print_table(heads, rows, f"The layers of {layers.attrs['checkpoint']}", right=range(2, len(heads)))
    print_lines(done.recording, *done.figures)


def print_demo(done: Demo) -> None:
    """What `print_profile` prints, and the path of the executed notebook."""
    print_profile(done)
    print_lines(done.notebook)


def print_made(made: MadeCheckpoint) -> None:
    """The number of layers by kind, the parameters, the size of the files and the path of the folder."""
    counts = {LABELS[kind]: len(layers) for kind in KINDS if (layers := made.anatomy.layers(kind))}
    kinds = ", ".join(f"{count} {kind} layer{'s' * (count > 1)}" for kind, count in counts.items())
    size = f"{made.anatomy.total:,} parameters, {made.bytes / 1e9:.1f} GB"
    print_lines(f"Random weights: {kinds}; {size}", made.folder)


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


def _rate(rates: xr.Dataset, name: str, form: str = ".2f") -> str:
    return estimate(float(rates[name]), *map(float, rates[f"{name}_interval"].values), form=form)


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


def print_ablations(done: Ablated, *, rows: Positive = 12) -> None:
    """The effects of ablations on each task, the findings, and the paths of the files.

    rows  ablations printed for each task, those with the largest effects
    """
    for task in done.statistics["task"].values:
        _print_effects(done.statistics, str(task), rows)
    print_lines(done.findings.read_text(encoding="utf-8"))
    if done.without_controls:
        names = ", ".join(done.without_controls[:8]) + (", ..." if len(done.without_controls) > 8 else "")
        print_lines(f"No other parts match {names}: compared with 0 alone.")
    print_lines(done.recording, done.findings, *done.figures)


def _print_effects(statistics: xr.Dataset, task: str, limit: int) -> None:
    ranked = stats.ablation_table(statistics, task)
    here, count, level = statistics.sel(task=task), ranked.sizes["ablation"], float(statistics.attrs["level"])
    units = str(ranked["effect"].attrs["units"])
    in_units = "" if units == "1" else f" ({units})"
    effect = f"{statistics['effect'].attrs['long_name']}{in_units}"
    rows: list[list[str | Text]] = []
    for index in range(min(limit, count)):
        one = ranked.isel(ablation=index)
        low, high, kind = int(one["rank_low"]), int(one["rank_high"]), str(one["kind"].values)
        effects = [_rate(one, name, "+.3g") for name in ("effect", "effect_above_controls")]
        ranks, significant = str(low) if low == high else f"{low} to {high}", "yes" if one["significant"] else "no"
        mixer = Text(LABELS.get(kind, "–"), COLOURS.get(kind, ""))
        rows.append([str(one["ablation"].values), mixer, *effects, f"{float(one['p_holm']):.2g}", ranks, significant])
    shown = "" if count <= limit else f", the first {limit} of {count}"
    title = f"{task}: {int(here['texts'])} texts, intervals {level:.0%}, p by Holm{shown}"
    print_table(("ablation", "mixer", effect, f"above controls{in_units}", "p", "rank", "significant"), rows, title)
