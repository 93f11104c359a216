"""`check_lossless`: is text that was drafted, verified and rolled back the text that plain decoding writes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from qwenlab.checkpoint.open import Checkpoint, refuse_model
from qwenlab.decode.decoding import Decoding, Settings
from qwenlab.decode.policies import Policy
from qwenlab.decode.prompts import Prompt, checked_depth, context_of, encoded, end_tokens_of
from qwenlab.decode.rollback import Replay, Rollback
from qwenlab.decode.rules import Rule, rule_of
from qwenlab.decode.witness import COMPONENTS, Witness, gaps, held
from qwenlab.errors import BadArgument

Verdict = Literal["lossless", "lossless up to numerics", "NOT lossless"]

MARGIN = 10.0
"""An error is a fault when it is so many times what reading in wider blocks alone does to the same state."""


@dataclass(frozen=True)
class Fault:
    """Where drafted decoding first left plain decoding.

    text, round  of the first bad round;  components: those beyond what is allowed in it, each with its error
    allowed      the errors that are allowed;  excess: tokens that a component holds too many (below 0: too few)
    layer        the lowest layer where the first of these components is beyond that
    """

    text: int
    round: int
    components: dict[str, float]
    allowed: dict[str, float]
    excess: dict[str, int]
    layer: int

    @property
    def component(self) -> str:
        """The first one that diverged: a fault in one reaches the others later."""
        return next(iter(self.components))

    def __str__(self) -> str:
        first = self.component
        where = f"text {self.text}, round {self.round}"
        if first == "verdict rule":
            return (
                f"{where}: a token was emitted that the main model finds less likely than its best by "
                f"{self.components[first]:.3g} nat; numerics explain {self.allowed[first]:.2g}"
            )
        counted = [f"{name} {n:+d}" for name, n in self.excess.items() if n]
        more = f"; tokens held beyond those read: {', '.join(counted)}" if counted else ""
        others = [name for name in self.components if name != first]
        also = f"; in the same round also {', '.join(others)}" if others else ""
        error, allowed = self.components[first], self.allowed[first]
        off = f"is off by {error:.2g} from layer {self.layer} on, where {allowed:.1g} is allowed"
        return f"{where}: {first} {'is not that of the tokens emitted' if np.isinf(error) else off}{also}{more}"


@dataclass(frozen=True, eq=False)
class Losslessness:
    """The verdict on drafted decoding, and what it rests on.

    verdict   "lossless": every token is plain decoding's, every state within the noise floor;
              "lossless up to numerics": some tokens differ where plain decoding was undecided within the noise floor;
              "NOT lossless": see `fault`
    fault     the first bad round, or None
    rounds    Dataset over `round`: relative error of each component against plain decoding, and of tokens the regret:
              ln p(best) - ln p(emitted) by plain decoding [nat]
    floor     by component, the error that reading in blocks of depth + 1 causes by itself; of "verdict rule", twice the
              largest difference of a log-probability [nat]
    differing tokens that are not plain decoding's argmax
    """

    verdict: Verdict
    fault: Fault | None
    rounds: xr.Dataset
    floor: dict[str, float]
    differing: int
    tokens: int

    def __bool__(self) -> bool:
        return self.fault is None

    def __repr__(self) -> str:
        lines = [f"{self.verdict}: {self.tokens:,} tokens in {self.rounds.sizes['round']:,} rounds, {self._how()}"]
        if self.fault is not None:
            lines.append(f"  first fault: {self.fault}")
        if self.differing:
            regret = float(self.rounds["regret"].max())
            lines.append(f"  {self.differing} tokens differ from plain decoding, the worst by {regret:.2g} nat")
        for name in COMPONENTS[1:]:
            worst = float(self.rounds[_variable(name)].max())
            lines.append(f"  {name:<16} largest error {worst:.1e}, noise floor {self.floor[name]:.1e}")
        return "\n".join(lines)

    def _how(self) -> str:
        attrs = self.rounds.attrs
        return f"rule {attrs['rule']}, depth {attrs['depth']}, rollback {attrs['rollback']}"

    def _repr_html_(self) -> str:
        return f'<pre style="font-family:monospace;font-size:90%;line-height:1.4">{escape(repr(self))}</pre>'


def check_lossless(
    checkpoint: Checkpoint,
    prompts: Prompt | Sequence[Prompt],
    *,
    depth: int,
    max_new_tokens: int = 64,
    rule: str | Rule = "greedy",
    policy: Policy | None = None,
    rollback: type[Rollback] | Rollback = Replay,
    progress: bool = True,
) -> Losslessness:
    """Decode with drafts, and hold every token and every state after every round to decoding without any.

    The witness reads the same tokens one by one (it never speculates), so a state may differ from its own only by the
    rounding of other kernel widths. How much that is is measured on the same texts, by reading them in blocks of
    depth + 1 with nothing rolled back; `MARGIN` times as much is allowed. A token that is not the witness's argmax is
    allowed if its regret is within twice the largest difference of log-probabilities found so.

    rule      one that takes the argmax: "greedy", or a `Rule` of your own with `samples = False`
    rollback  the class to check; any object with that interface will do

    Raises NoMtpHead, BadPrompt, BadArgument.
    """
    refuse_model(checkpoint)
    head = checkpoint.require_mtp()
    judge = rule_of(rule, 0.0)
    room = context_of(checkpoint)
    settings = Settings(checked_depth(depth, room), judge, policy, end_tokens=end_tokens_of(checkpoint))
    rows: list[dict[str, Any]] = []
    floor: dict[str, float] = dict.fromkeys((*COMPONENTS, "verdict rule"), 0.0)
    for text, prompt in enumerate(tqdm(encoded(checkpoint, prompts, max_new_tokens), disable=not progress)):
        own = rollback() if isinstance(rollback, type) else rollback
        generator = torch.Generator(prompt.device)
        decoding = Decoding(head, prompt, settings, own, max_new_tokens=max_new_tokens, generator=generator)
        rows += _compared(decoding, Witness(head, prompt), text)
        found = _noise(decoding, prompt)
        floor = {name: max(floor[name], found[name]) for name in floor}
    if not rows:
        raise BadArgument("No round was run: every text ended with its first token.\nGive longer max_new_tokens.")
    allowed = _allowed(checkpoint, floor)
    return _judged(rows, floor, allowed, {"rule": judge.name, "depth": depth, "rollback": own.name})


@torch.no_grad()
def _compared(decoding: Decoding, witness: Witness, text: int) -> list[dict[str, Any]]:
    """Decode a text, its witness one token behind: a row for each round."""
    decoding.start()
    rows: list[dict[str, Any]] = []
    regrets, pairs = [_regret(witness.logits[-1], decoding.tokens[-1])], 0
    while not decoding.ended:
        made = decoding.step()
        for token in decoding.tokens[made.begin - 1 :][: made.emitted]:
            witness.read(torch.tensor([token], device=decoding.context.device))
            regrets.append(_regret(witness.logits[-1], decoding.tokens[witness.context.position]))
        pairs = made.begin - 1 if made.proposed else pairs
        state = (decoding.context, decoding.drafter.cache, witness, pairs)
        found = gaps(*state)
        rows.append(
            {
                "text": text,
                "round": len(rows),
                "accepted": made.accepted,
                "layers": found,
                "excess": held(*state),
                "regrets": regrets,
            }
        )
        regrets = []
    return rows


@torch.no_grad()
def _noise(decoding: Decoding, prompt: torch.Tensor) -> dict[str, float]:
    """What reading the same text in blocks of depth + 1 does to each component, and to log-probabilities."""
    head, width = decoding.drafter.head, decoding.settings.depth + 1
    narrow, wide = Witness(head, prompt), Witness(head, prompt)
    text = prompt.new_tensor(decoding.tokens[len(prompt) : -1])
    worst = dict.fromkeys((*COMPONENTS, "verdict rule"), 0.0)
    for block in text.split(width) if len(text) else ():
        wide.read(block)
        rows = []
        for token in block:
            narrow.read(token[None])
            rows.append(narrow.logits[-1])
        shift = (torch.stack(rows).log_softmax(-1) - wide.logits.log_softmax(-1)).abs().max()
        found = gaps(wide.context, wide.head_cache, narrow, int(narrow.head_cache.get_seq_length()))
        worst = {name: max(worst[name], *found[name].values()) for name in COMPONENTS} | {
            "verdict rule": max(worst["verdict rule"], 2 * float(shift))
        }
    return worst


def _allowed(checkpoint: Checkpoint, floor: dict[str, float]) -> dict[str, float]:
    """The errors that numerics explain. A floor of exactly 0 would forbid the rounding of one operation."""
    tiny = 8 * torch.finfo(checkpoint.model.dtype).eps
    return {name: 0.0 if name == "position" else MARGIN * max(value, tiny) for name, value in floor.items()}


def _regret(logits: torch.Tensor, token: int) -> float:
    """ln p(best) - ln p(token)."""
    return float(logits.max() - logits[token])


def _judged(
    rows: list[dict[str, Any]], floor: dict[str, float], allowed: dict[str, float], attrs: dict[str, Any]
) -> Losslessness:
    fault = next((found for row in rows if (found := _fault(row, allowed)) is not None), None)
    regrets = [regret for row in rows for regret in row["regrets"]]
    differing = sum(regret > 0 for regret in regrets)
    data: dict[str, Any] = {
        name: ("round", np.array([row[key] for row in rows]), {"units": "1", "long_name": meaning})
        for name, key, meaning in (
            ("text", "text", "number of the text"),
            ("number", "round", "number of the round in it"),
            ("accepted", "accepted", "drafts accepted"),
        )
    }
    for name in COMPONENTS:
        values = np.array([max(row["layers"][name].values()) for row in rows])
        data[_variable(name)] = ("round", values, {"units": "1", "long_name": f"relative error, {name}"})
    worst = np.array([max(row["regrets"], default=0.0) for row in rows])
    data["regret"] = ("round", worst, {"units": "nat", "long_name": "largest regret of a token"})
    verdict: Verdict = "NOT lossless" if fault else "lossless up to numerics" if differing else "lossless"
    return Losslessness(verdict, fault, xr.Dataset(data, attrs=attrs), floor, differing, len(regrets))


def _fault(row: dict[str, Any], allowed: dict[str, float]) -> Fault | None:
    """What is beyond numerics in a round: its tokens first, which the states before it decided."""
    layers = {"verdict rule": {0: max(row["regrets"], default=0.0)}, **row["layers"]}
    found = {name: max(errors.values()) for name, errors in layers.items()}
    bad = {name: error for name, error in found.items() if error > allowed[name]}
    if not bad:
        return None
    first = next(iter(bad))
    layer = next(layer for layer, error in layers[first].items() if error > allowed[first])
    return Fault(row["text"], row["round"], bad, allowed, row["excess"], layer)


def _variable(component: str) -> str:
    return component.replace(" ", "_") + "_error"
