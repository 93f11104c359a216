"""The tokens of drafted and verified rounds as a strip: accepted, rejected, added. Plain HTML, which any page shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from qwenlab.errors import BadArgument
from qwenlab.plots.style import PALETTE
from qwenlab.stats.base.rounds import about, read_rounds
from qwenlab.stats.base.source import Source

_SHOWN = 100  # rounds, where none are asked for
_MARKS = {"\n": "↵\n", "\t": "⇥\t", "\r": "␍"}
_KINDS = {
    "accepted": (
        "[{}]",
        "draft, accepted",
        f"background:{PALETTE[0]}30;border-bottom:2px solid {PALETTE[0]};margin-right:1px",
    ),
    "rejected": ("-{}-", "draft, rejected", f"color:{PALETTE[3]};text-decoration:line-through"),
    "added": (
        "+{}+",
        "added by the main model",
        f"border:1px solid {PALETTE[2]};border-radius:3px;box-decoration-break:clone",
    ),
}
"""What a token can be: how it is written as text, called, and drawn."""

_ENDS = {
    "rejected": "a draft was rejected",
    "full": "every draft was accepted",
    "eos": "the text ended",
    "length": "as many tokens as were asked for",
}


class Token(NamedTuple):
    """A token of a strip: accepted, rejected or added; its text; and what is known of it."""

    kind: str
    text: str
    told: str


@dataclass(frozen=True)
class Strip:
    """Rounds as coloured tokens; as the last line of a cell it shows itself.

    What was accepted stands on a ground, what the main model added in a frame, and a rejected draft is struck out
    before what came in its place: they are told apart without colours too. A thin line ends each round. Pointing at a
    token shows its round, its place in it, its id and its probabilities.
    """

    rounds: Sequence[Sequence[Token]]
    caption: str

    def _repr_html_(self) -> str:
        keys = "".join(f'<span style="{look};margin-right:1.2em">{means}</span>' for _, means, look in _KINDS.values())
        rounds = "".join(map(_html, self.rounds))
        line = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:2;font-family:monospace;margin:.4em 0"
        return (
            '<div class="qwenlab-strip" style="color:#262626;background:#fff;padding:.4em">'
            f'<div style="font-size:90%">{keys}</div><div style="{line}">{rounds}</div>'
            f'<div style="font-size:85%">{escape(self.caption)}</div></div>'
        )

    def __repr__(self) -> str:
        """The same as text: [accepted], -rejected-, +added+, and a bar after each round."""
        rounds = ("".join(_KINDS[each.kind][0].format(each.text) for each in tokens) for tokens in self.rounds)
        return f"{self.caption}\n{' | '.join(rounds)}"


def strip(
    source: Source, decode: Callable[[int], str], *, prompt: int = 0, rounds: slice | range | None = None
) -> Strip:
    """What was drafted for one prompt and what came of it, token by token: HTML without a script, its text escaped.

    source  a Recording, or the ledger of its node "rounds"
    decode  a token's text by its id: `tokenizer.decode`
    prompt  whose rounds, by its number in the ledger
    rounds  which of them, by their number in the prompt, such as range(10, 30); by default the first 100

    The first token after the prompt is of no round and is not shown. Raises BadArgument for a prompt or rounds that the
    ledger does not have, and for what decodes to no text; else as `stats.acceptance`.
    """
    data = read_rounds(source, "number", "next_token", "draft_probability", "target_probability")
    prompts = np.unique(data["prompt"].values).tolist()
    if prompt not in prompts:
        raise BadArgument(f"prompt={prompt!r}: this ledger has rounds of prompts {_listed(prompts)}.")
    own = data.isel(round=np.flatnonzero(data["prompt"].values == prompt))
    number = own["number"].values
    wanted = slice(_SHOWN) if rounds is None else slice(rounds.start, rounds.stop, rounds.step)
    shown = own.isel(round=np.flatnonzero(np.isin(number, np.arange(number.max() + 1)[wanted])))
    if not shown.sizes["round"]:
        raise BadArgument(f"rounds={rounds!r}: prompt {prompt} has rounds {number.min()} to {number.max()}.")
    return Strip([list(each) for each in _rounds(shown, decode)], _caption(own, shown, prompt))


def _rounds(data: xr.Dataset, decode: Callable[[int], str]) -> Iterator[Iterator[Token]]:
    """The tokens of each round: accepted drafts, the first rejected one, the token added."""
    held = {str(name): data[name].values for name in data}
    for place in range(data.sizes["round"]):
        yield _tokens({name: values[place] for name, values in held.items()}, decode)


def _tokens(one: dict[str, Any], decode: Callable[[int], str]) -> Iterator[Token]:
    accepted, added = int(one["accepted"]), int(one["next_token"])
    ended = f"round {one['number']}: {accepted} of {one['drafted']} drafts accepted; {_ENDS[str(one['ended'])]}"
    for at, token in enumerate(one["draft_token"][: int(one["tested"])].tolist()):
        kind = "accepted" if at < accepted else "rejected"
        named = {"head": one["draft_probability"][at], "main model": one["target_probability"][at]}
        sure = ", ".join(f"{name} {value:.3f}" for name, value in named.items() if not np.isnan(value))
        told = f"draft {at + 1}, {kind}: token {token}{f'; probability by {sure}' if sure else ''}"
        text = _word(token, decode)
        text = (
            text if kind == "accepted" else text.replace("\n", "").replace("\t", "")
        )  # what is not there ends no line
        yield Token(kind, text, f"{told}\n{ended}")
    if added >= 0:
        yield Token("added", _word(added, decode), f"added by the main model: token {added}\n{ended}")


def _word(token: int, decode: Callable[[int], str]) -> str:
    """A token as it is read: blanks that would not be seen get a mark, what cannot be printed a substitute."""
    text = decode(token)
    if not isinstance(text, str):
        raise BadArgument(f"decode({token}) is a {type(text).__name__}, no text.\nGive tokenizer.decode.")
    return "".join(_MARKS.get(c, c if c.isprintable() else "\N{REPLACEMENT CHARACTER}") for c in text) or "∅"


def _html(tokens: Sequence[Token]) -> str:
    """One round, with a line at its end."""
    shown = (
        f'<span class="{kind}" title="{escape(told)}" style="{_KINDS[kind][2]}">{escape(text)}</span>'
        for kind, text, told in tokens
    )
    return f'<span style="border-right:1px solid #999;padding-right:3px;margin-right:3px">{"".join(shown)}</span>'


def _caption(own: xr.Dataset, shown: xr.Dataset, prompt: int) -> str:
    """What is shown, in counts, and under which rule and depth it was made."""
    facts, many, all_ = about(own), shown.sizes["round"], own.sizes["round"]
    part = f"{many:,} rounds" if many == all_ else f"{many:,} of {all_:,} rounds"
    drafted, accepted, emitted = (int(shown[name].sum()) for name in ("drafted", "accepted", "emitted"))
    made = ", ".join([f"rule {facts['rule']}", f"depth {facts['depth']}", f"policy {facts['policy']}", facts["origin"]])
    counts = f"{drafted:,} tokens drafted, {accepted:,} accepted, {emitted:,} emitted"
    return f"prompt {prompt} ({own['label'].values[0]}), {part}: {counts} ({made})"


def _listed(numbers: list[int]) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 8 else ", ".join(map(str, numbers))
