"""Display an `Anatomy`, which imports this file, in a notebook (HTML) and in a terminal (rich)."""

from __future__ import annotations

import io
from collections.abc import Iterable
from html import escape
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from qwenlab.checkpoint.families import ATTENTION, DELTANET, KINDS
from qwenlab.errors import UnknownQuantization

COLOURS = {DELTANET: "#0072B2", ATTENTION: "#E69F00"}
"""The colours of the two kinds of mixer, everywhere in qwenlab (Okabe and Ito: colour-blind safe)."""

LABELS = {
    DELTANET: "DeltaNet",
    ATTENTION: "attention",
    "shared_expert": "shared expert",
    "mlp": "dense MLP",
    "lm_head": "head",
    "vision": "vision tower",
    "mtp": "MTP head",
}
"""Display names of parts whose name is not plain English."""

_GREY = "#8A8A8A"
_BLOCKS = {DELTANET: "▄", ATTENTION: "█"}  # attention is taller, as in HTML, so that the kinds differ without colour
_PART_COLUMNS = ("part", "parameters", "share", "active per token")
_COST_COLUMNS = ("context", "KV cache", "MTP cache", "states", "prefill FLOP", "decode FLOP", "decode bytes")
_COST_NOTE = "Costs of one sequence; FLOPs and bytes per token."
_CONTEXTS = (4 * 1024, 32 * 1024, 256 * 1024)


def terminal(anatomy: Any) -> RenderableType:
    """Return the anatomy as a rich renderable."""
    strip = Text().join(Text(_BLOCKS[kind], COLOURS[kind]) for kind in anatomy.layer_types)
    legend = Text("   ").join(
        Text(f"{_BLOCKS[kind]} {LABELS[kind]} {len(anatomy.layers(kind))}", COLOURS[kind]) for kind in KINDS
    )
    parts = _terminal_table(_PART_COLUMNS)
    for part in _parts(anatomy):
        parts.add_row(Text(part.label, part.colour), part.parameters, f"{part.share:.1%}", part.active)
    parts.add_section()
    parts.add_row("total", f"{anatomy.total:,}", "", f"{anatomy.active:,}")
    costs = _terminal_table(_COST_COLUMNS)
    for row in _costs(anatomy):
        costs.add_row(*row)
    return Group(Text(_title(anatomy), "bold"), Text(_subtitle(anatomy)), strip, legend, parts, costs, _COST_NOTE)


def plain(anatomy: Any) -> str:
    """Return the anatomy as text without colour."""
    console = Console(file=io.StringIO(), width=120, color_system=None)
    with console.capture() as capture:
        console.print(terminal(anatomy))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def html(anatomy: Any) -> str:
    """Return the anatomy as one block of HTML, with all text escaped."""
    cells = "".join(_cell(layer, kind) for layer, kind in enumerate(anatomy.layer_types))
    legend = "".join(
        f'<span style="margin-right:1.5em">{_swatch(COLOURS[kind])} {LABELS[kind]} {len(anatomy.layers(kind))}</span>'
        for kind in KINDS
    )
    parts = [
        (f"{_swatch(part.colour)} {escape(part.label)}", part.parameters, _bar(part), part.active)
        for part in _parts(anatomy)
    ]
    total = ("<b>total</b>", f"<b>{anatomy.total:,}</b>", "", f"<b>{anatomy.active:,}</b>")
    return (
        '<div class="qwenlab-anatomy" style="max-width:60em;line-height:1.4">'
        f'<div style="font-size:1.2em;font-weight:600">{escape(_title(anatomy))}</div>'
        f'<div style="opacity:.75;margin-bottom:.6em">{escape(_subtitle(anatomy))}</div>'
        f'<div style="display:flex;flex-wrap:wrap;gap:2px;align-items:flex-end">{cells}</div>'
        f'<div style="margin:.3em 0 .8em">{legend}</div>'
        f"{_html_table(_PART_COLUMNS, [*parts, total])}"
        f"{_html_table(_COST_COLUMNS, _costs(anatomy))}"
        f'<div style="opacity:.75">{_COST_NOTE}</div>'
        "</div>"
    )


def _terminal_table(columns: tuple[str, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column == "part" else "right", no_wrap=True)
    return table


def _cell(layer: int, kind: str) -> str:
    """One layer of the strip."""
    height = 20 if kind == ATTENTION else 12
    style = f"width:9px;height:{height}px;border-radius:1px;background:{COLOURS[kind]}"
    return f'<span title="layer {layer}: {LABELS[kind]}" style="{style}"></span>'


def _swatch(colour: str) -> str:
    style = f"display:inline-block;width:.7em;height:.7em;border-radius:2px;background:{colour}"
    return f'<span style="{style}"></span>'


def _bar(part: _Part) -> str:
    style = f"display:inline-block;width:{100 * part.share:.1f}px;height:.7em;background:{part.colour}"
    return f'<span style="{style}"></span> {part.share:.1%}'


def _html_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of HTML cells: the first column is left-aligned, numbers are right-aligned."""

    def line(tag: str, cells: Iterable[str]) -> str:
        style = "padding:.1em .8em;white-space:nowrap;font-variant-numeric:tabular-nums;text-align:"
        aligned = (("right" if column else "left", cell) for column, cell in enumerate(cells))
        return "<tr>" + "".join(f'<{tag} style="{style}{side}">{cell}</{tag}>' for side, cell in aligned) + "</tr>"

    head, body = line("th", columns), "".join(line("td", row) for row in rows)
    style = "margin:0 0 .8em;border-collapse:collapse;font-size:inherit"
    return f'<table style="{style}"><thead>{head}</thead><tbody>{body}</tbody></table>'


def _title(anatomy: Any) -> str:
    active = f", {_parameters(anatomy.active)} active per token" if anatomy.config.num_experts else ""
    return f"{_printable(anatomy.name)}: {_parameters(anatomy.total)} parameters{active}"


def _subtitle(anatomy: Any) -> str:
    config = anatomy.config
    values, keys = config.linear_num_value_heads, config.linear_num_key_heads
    experts = f"{config.num_experts} experts, {config.num_experts_per_tok} per token and one shared"
    facts = (
        config.family.name,
        f"{len(config.layer_types)} layers of width {config.hidden_size:,}",
        f"DeltaNet {values}/{keys} heads of {config.linear_value_head_dim}",
        f"attention {config.num_attention_heads}/{config.num_key_value_heads} heads of {config.head_dim}",
        experts if config.num_experts else "",
        f"vocabulary {config.vocab_size:,}{', tied' if config.tie_word_embeddings else ''}",
        _printable(config.quantization or config.dtype),
    )
    return " · ".join(filter(None, facts))


class _Part(NamedTuple):
    """A row of the table of parts."""

    label: str
    colour: str
    parameters: str
    share: float  # of all parameters
    active: str


def _parts(anatomy: Any) -> list[_Part]:
    """The rows of the table of parts, without parts that this checkpoint lacks."""
    active = {part: f"{size:,}" for part, size in anatomy.active_parameters.items()}
    if not anatomy.config.tie_word_embeddings:
        active["embedding"] = "one row"
    return [
        _Part(
            label=LABELS.get(part, part),
            colour=COLOURS.get(part, _GREY),
            parameters=f"{size:,}",
            share=size / anatomy.total,
            active=active.get(part, ""),
        )
        for part, size in anatomy.parameters.items()
        if size
    ]


def _costs(anatomy: Any) -> list[tuple[str, ...]]:
    """Memory and cost of one sequence, one row per context length up to the model's maximum."""
    longest = anatomy.config.max_position_embeddings
    return [
        (
            f"{context:,}",
            _bytes(anatomy.kv_bytes(context)),
            _bytes(anatomy.mtp_kv_bytes(context)),
            _bytes(anatomy.state_bytes()),
            _flop(anatomy.flops("prefill", context=context).total / context),
            _flop(anatomy.flops("decode", context=context).total),
            _decode_bytes(anatomy, context),
        )
        for context in ([context for context in _CONTEXTS if context <= longest] or [longest])
    ]


def _decode_bytes(anatomy: Any, context: int) -> str:
    try:
        return _bytes(anatomy.bytes_moved("decode", context=context).total)
    except UnknownQuantization:
        return "unknown"


def _parameters(number: int) -> str:
    """27,781,427,952 as "27.78 billion"."""
    return _scaled(number, 1000, ("", "thousand", "million", "billion", "trillion"), digits=4)


def _flop(number: float) -> str:
    """6,674,000,000 as "6.67 G"."""
    return _scaled(number, 1000, ("", "k", "M", "G", "T", "P"))


def _bytes(number: float) -> str:
    """65,536 as "64 KiB"."""
    return _scaled(number, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def _scaled(number: float, base: int, units: tuple[str, ...], digits: int = 3) -> str:
    """A few digits and the largest unit in which the number is at least one."""
    power = 0
    while number >= base and power < len(units) - 1:
        number, power = number / base, power + 1
    return f"{number:.{4 if number >= 1000 else digits}g} {units[power]}".rstrip()


def _printable(text: str) -> str:
    """Replace the control characters in the text of a config, which could control a terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
