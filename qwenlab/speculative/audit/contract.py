"""`Contract`: what an MTP head expects of the code that runs it, and a head run under any such expectation."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import nn
from transformers import PreTrainedModel

from qwenlab.capture.wrapping import in_this_thread, inputs
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.errors import BadArgument
from qwenlab.speculative.context import TargetContext
from qwenlab.speculative.draft_chains import Step, chains

FIRST_ROW = 2
"""The first place of a text from which a chain begins under every contract."""


@dataclass(frozen=True, slots=True)
class Contract:
    """The settings under which an MTP head is run; by default those of the published Qwen heads.

    hidden   which hidden state of the trunk it is given: after the trunk's final norm, or before it
    norms    what all its norms multiply by, those of queries and keys too, w being the weight as stored. A head whose
             weights were stored with 1 added wants "w", one with 1 taken off wants "2 + w"
    order    whose half of the columns of `mtp.fc` comes first
    tokens   which token stands beside the hidden state h[p]
    chain    which of its own states a deeper draft is given as hidden: after `mtp.norm`, or before it
    cache    prefilled: a chain attends all true pairs of the text before it; empty: its own entries alone
    weights  "scaled like the trunk": each matrix that is many times larger or smaller than the trunk's matrix of that
             name is brought to its size, which is what quantised weights need whose scales were not read

    No token and no hidden state is used before it is known in decoding: "x[p]" pairs the newest hidden state with the
    token before the newest, "x[p+2]" the newest token with the hidden state before the newest. Every draft is for the
    place that it has under the default contract.

    Sources: vLLM `qwen3_5_mtp.py`, SGLang `qwen3_5_mtp.py`; before the norm as llama.cpp did until PR 24025.
    """

    hidden: Literal["after the final norm", "before the final norm"] = "after the final norm"
    norms: Literal["1 + w", "w", "2 + w"] = "1 + w"
    order: Literal["embedding first", "hidden first"] = "embedding first"
    tokens: Literal["x[p+1]", "x[p]", "x[p+2]"] = "x[p+1]"
    chain: Literal["after mtp.norm", "before mtp.norm"] = "after mtp.norm"
    cache: Literal["prefilled", "empty"] = "prefilled"
    weights: Literal["as loaded", "scaled like the trunk"] = "as loaded"

    def __post_init__(self) -> None:
        for name, values in settings().items():
            if getattr(self, name) not in values:
                raise BadArgument(
                    f"Contract({name}={getattr(self, name)!r}): {name} is one of {', '.join(map(repr, values))}."
                )

    def variants(self) -> dict[str, Contract]:
        """Every contract that differs from this one in one setting, by a label such as "norms = w"."""
        labels = (
            f"{name} = {value}"
            for name, values in settings().items()
            for value in values
            if value != getattr(self, name)
        )
        return {label: self.changed(label) for label in labels}

    def changed(self, label: str) -> Contract:
        """This contract but for one setting, as a label of `variants` says it."""
        name, _, value = label.partition(" = ")
        change: dict[str, Any] = {name: value}
        return replace(self, **change)


def settings() -> dict[str, tuple[str, ...]]:
    """The values of each setting, that of the published heads first."""
    hints = get_type_hints(Contract)
    return {field.name: get_args(hints[field.name]) for field in fields(Contract)}


@dataclass(frozen=True)
class TargetStates:
    """A text and what the trunk makes of it.

    tokens         int [token]
    after, before  float [token, channel]: hidden states after the trunk's final norm, and before it
    target         int [token]: the main model's argmax after reading it
    """

    tokens: torch.Tensor
    after: torch.Tensor
    before: torch.Tensor
    target: torch.Tensor


@torch.no_grad()
def states_of(model: PreTrainedModel, tokens: torch.Tensor, *, chunk: int = 256) -> TargetStates:
    """Let the trunk read a text, int [token], `chunk` tokens at a time."""
    context = TargetContext(model)
    before: list[torch.Tensor] = []

    def keep(args: tuple[Any, ...], _: dict[str, Any]) -> None:
        before.append(args[0][0])

    after, target = [], []
    with inputs(context.decoder.module.get_submodule("norm"), in_this_thread(keep)):
        for part in tokens.split(chunk):
            after.append(context.read(part))
            target.append(context.logits(after[-1]).argmax(dim=-1).to(tokens.device))
    return TargetStates(tokens, torch.cat(after), torch.cat(before), torch.cat(target))


@torch.no_grad()
def head_under(contract: Contract, head: MtpHead, factors: Mapping[str, float]) -> MtpHead:
    """The head with its weights as the contract has them; the head given stays as it is, and shares what is the same.

    factors  by matrix, what "scaled like the trunk" multiplies it by: `scales.factors`
    """
    changed: dict[str, torch.Tensor] = {}
    shift = {"w": -1.0, "1 + w": 0.0, "2 + w": 1.0}[contract.norms]
    if shift:
        # The modules add 1 in float32 whatever the weight's dtype: so nothing is rounded here that they do not round.
        norms = (name for name, module in head.named_modules() if isinstance(module, type(head.norm)))
        changed |= {f"{name}.weight": head.get_parameter(f"{name}.weight").float() + shift for name in norms}
    if contract.weights == "scaled like the trunk":
        changed |= {name: head.get_parameter(name) * factor for name, factor in factors.items()}
    if contract.order == "hidden first":
        columns = changed.get("fc.weight", head.get_parameter("fc.weight")).chunk(2, dim=1)
        changed["fc.weight"] = torch.cat(columns[::-1], dim=1)
    return with_tensors(head, changed) if changed else head


def with_tensors(head: MtpHead, tensors: Mapping[str, torch.Tensor]) -> MtpHead:
    """A copy of the head with these parameters in place of its own; all others, and the trunk, are shared."""
    copied = copy.deepcopy(head, {id(part): part for part in (head.trunk, *head.parameters())})
    for name, tensor in tensors.items():
        owner, _, last = name.rpartition(".")
        setattr(copied.get_submodule(owner), last, nn.Parameter(tensor, requires_grad=False))
    return copied


def drafts_under(contract: Contract, head: MtpHead, text: TargetStates, *, depth: int) -> Iterator[Step]:
    """The drafts of `chains` for every place of a text from `FIRST_ROW` on (and some for the place before it).

    head  as `head_under` gives it
    """
    hidden = text.after if contract.hidden == "after the final norm" else text.before
    tokens, late = text.tokens, 0
    if contract.tokens == "x[p]":
        tokens = torch.cat([tokens[:1], tokens[:-1]])
    elif contract.tokens == "x[p+2]":
        tokens, hidden, late = tokens[1:], hidden[:-1], 1
    steps = chains(
        head,
        tokens,
        hidden,
        depth=depth,
        prefilled=contract.cache == "prefilled",
        feedback=None if contract.chain == "after mtp.norm" else _before_norm,
    )
    for step in steps:
        yield replace(step, rows=range(step.rows.start + late, step.rows.stop + late))


def _before_norm(before: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return before
