"""`strip`: the tokens of speculative decoding as plain HTML: accepted, rejected or added, round by round."""

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

_SHOWN = 100  # rounds, by default
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
        "added by the target model",
        f"border:1px solid {PALETTE[2]};border-radius:3px;box-decoration-break:clone",
    ),
}
"""By kind of token: its format as text, its name in the legend, and its CSS style."""

_ENDS = {
    "rejected": "a draft was rejected",
    "full": "every draft was accepted",
    "eos": "the text ended",
    "length": "the requested number of tokens was reached",
}


class Token(NamedTuple):
    """A token of a strip: "accepted", "rejected" or "added"; its text; and its tooltip."""

    kind: str
    text: str
    tooltip: str


@dataclass(frozen=True)
class Strip:
    """Rounds as coloured tokens; a notebook cell that ends with a strip displays it.

    Accepted tokens have a background, tokens of the target model a frame, and a rejected draft is struck out before
    the token that replaced it, so they differ without colours too. A thin line ends each round. The tooltip of a token
    shows its round, its index in the round, its id and its probabilities.
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
        rounds = ("".join(_KINDS[token.kind][0].format(token.text) for token in tokens) for tokens in self.rounds)
        return f"{self.caption}\n{' | '.join(rounds)}"


def strip(
    source: Source, decode: Callable[[int], str], *, prompt: int = 0, rounds: slice | range | None = None
) -> Strip:
    """The drafts for one prompt and their outcome, token by token: HTML without scripts, with escaped text.

    source  a Recording, or the ledger of its node "rounds"
    decode  the text of a token id: `tokenizer.decode`
    prompt  number of the prompt in the ledger
    rounds  numbers of the rounds to show, such as range(10, 30); by default the first 100

    The first token after the prompt does not belong to a round and is not shown. Raises BadArgument for a prompt or
    rounds that the ledger does not have, and if `decode` does not return text; also as `stats.acceptance`.
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
    columns = {str(name): shown[name].values for name in shown}
    rows = [{name: values[at] for name, values in columns.items()} for at in range(shown.sizes["round"])]
    return Strip([list(_tokens(row, decode)) for row in rows], _caption(own, shown, prompt))


def _tokens(row: dict[str, Any], decode: Callable[[int], str]) -> Iterator[Token]:
    """The tokens of one round: accepted drafts, the first rejected one, the token added."""
    accepted, added = int(row["accepted"]), int(row["next_token"])
    ended = f"round {row['number']}: {accepted} of {row['drafted']} drafts accepted; {_ENDS[str(row['ended'])]}"
    for at, token in enumerate(row["draft_token"][: int(row["tested"])].tolist()):
        kind = "accepted" if at < accepted else "rejected"
        named = {"draft head": row["draft_probability"][at], "target model": row["target_probability"][at]}
        known = ", ".join(f"{name} {value:.3f}" for name, value in named.items() if not np.isnan(value))
        tooltip = f"draft {at + 1}, {kind}: token {token}{f'; probability by {known}' if known else ''}"
        text = _word(token, decode)
        if kind == "rejected":  # it was not emitted, so it does not end a line
            text = text.replace("\n", "").replace("\t", "")
        yield Token(kind, text, f"{tooltip}\n{ended}")
    if added >= 0:
        yield Token("added", _word(added, decode), f"added by the target model: token {added}\n{ended}")


def _word(token: int, decode: Callable[[int], str]) -> str:
    """The text of a token, with marks for invisible characters and substitutes for unprintable ones."""
    text = decode(token)
    if not isinstance(text, str):
        raise BadArgument(f"decode({token}) returned {type(text).__name__}, not text.\nGive tokenizer.decode.")
    return "".join(_MARKS.get(c, c if c.isprintable() else "\N{REPLACEMENT CHARACTER}") for c in text) or "∅"


def _html(tokens: Sequence[Token]) -> str:
    """One round, with a line at its end."""
    shown = (
        f'<span class="{kind}" title="{escape(tooltip)}" style="{_KINDS[kind][2]}">{escape(text)}</span>'
        for kind, text, tooltip in tokens
    )
    return f'<span style="border-right:1px solid #999;padding-right:3px;margin-right:3px">{"".join(shown)}</span>'


def _caption(own: xr.Dataset, shown: xr.Dataset, prompt: int) -> str:
    """The counts of the rounds shown, and the rule, depth and policy of the run."""
    facts, many, all_ = about(own), shown.sizes["round"], own.sizes["round"]
    part = f"{many:,} rounds" if many == all_ else f"{many:,} of {all_:,} rounds"
    drafted, accepted, emitted = (int(shown[name].sum()) for name in ("drafted", "accepted", "emitted"))
    how = ", ".join([f"rule {facts['rule']}", f"depth {facts['depth']}", f"policy {facts['policy']}", facts["origin"]])
    counts = f"{drafted:,} tokens drafted, {accepted:,} accepted, {emitted:,} emitted"
    return f"prompt {prompt} ({own['label'].values[0]}), {part}: {counts} ({how})"


def _listed(numbers: list[int]) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 8 else ", ".join(map(str, numbers))
