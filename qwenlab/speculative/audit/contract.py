"""`Contract`: the inputs and wiring that an MTP head expects; run a head under any contract."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import nn
from transformers import PreTrainedModel

from qwenlab.arguments import choice
from qwenlab.capture.wrapping import in_this_thread, inputs
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.speculative.context import TargetContext
from qwenlab.speculative.draft_chains import Step, draft_chains

FIRST_ROW = 2
"""First place of a text at which a chain begins under every contract."""


@dataclass(frozen=True, slots=True)
class Contract:
    """The settings under which an MTP head runs; by default those of the published Qwen heads.

    hidden   the target model's hidden state that the head reads: after the target model's final norm, or before it
    norms    factor of all norms of the head, with those of queries and keys; w is the weight as stored. A head whose
             weights were stored with 1 added needs "w", one with 1 subtracted needs "2 + w"
    order    which half of the columns of `mtp.fc` comes first
    tokens   the token paired with the hidden state h[p]
    chain    the head's own state that a deeper draft reads as hidden: after `mtp.norm`, or before it
    cache    prefilled: a chain attends to all true pairs of the text before it; empty: to its own entries only
    weights  "scaled like the target model": each matrix that is many times larger or smaller than the target
             model's matrix of that name is scaled to its size, as quantised weights need if their scales were not read

    No token and no hidden state is used before it is known in decoding: "x[p]" pairs the newest hidden state with the
    token before the newest, "x[p+2]" the newest token with the hidden state before the newest. Every draft is for the
    same place as under the default contract.

    Sources: vLLM `qwen3_5_mtp.py`, SGLang `qwen3_5_mtp.py`; before the norm as llama.cpp did until PR 24025.
    """

    hidden: Literal["after the final norm", "before the final norm"] = "after the final norm"
    norms: Literal["1 + w", "w", "2 + w"] = "1 + w"
    order: Literal["embedding first", "hidden first"] = "embedding first"
    tokens: Literal["x[p+1]", "x[p]", "x[p+2]"] = "x[p+1]"
    chain: Literal["after mtp.norm", "before mtp.norm"] = "after mtp.norm"
    cache: Literal["prefilled", "empty"] = "prefilled"
    weights: Literal["as loaded", "scaled like the target model"] = "as loaded"

    def __post_init__(self) -> None:
        for name, values in settings().items():
            choice("Contract", name, getattr(self, name), values)

    def variants(self) -> dict[str, Contract]:
        """All contracts that differ from this one in one setting, by label, such as "norms = w"."""
        labels = (f"{name} = {value}" for name, values in settings().items() for value in values)
        contracts = {label: self.changed(label) for label in labels}
        return {label: contract for label, contract in contracts.items() if contract != self}

    def changed(self, label: str) -> Contract:
        """This contract with one setting changed; `label` as in `variants`."""
        name, _, value = label.partition(" = ")
        change: dict[str, Any] = {name: value}
        return replace(self, **change)


def settings() -> dict[str, tuple[str, ...]]:
    """The values of each setting; that of the published heads is first."""
    hints = get_type_hints(Contract)
    return {field.name: get_args(hints[field.name]) for field in fields(Contract)}


@dataclass(frozen=True)
class TargetStates:
    """A text with the target model's hidden states and choices.

    tokens         int [token]
    after, before  float [token, channel]: hidden states after the target model's final norm, and before it
    target         int [token]: the target model's argmax after reading it
    """

    tokens: torch.Tensor
    after: torch.Tensor
    before: torch.Tensor
    target: torch.Tensor


@torch.no_grad()
def read_target_states(model: PreTrainedModel, tokens: torch.Tensor, *, chunk: int = 256) -> TargetStates:
    """Let the target model read a text, int [token], `chunk` tokens per pass."""
    context = TargetContext(model)
    before: list[torch.Tensor] = []

    def store(args: tuple[Any, ...], _: dict[str, Any]) -> None:
        before.append(args[0][0])

    after, target = [], []
    with inputs(context.decoder.module.get_submodule("norm"), in_this_thread(store)):
        for part in tokens.split(chunk):
            after.append(context.read(part))
            target.append(context.logits(after[-1]).argmax(dim=-1).to(tokens.device))
    return TargetStates(tokens, torch.cat(after), torch.cat(before), torch.cat(target))


@torch.no_grad()
def adapt_head(contract: Contract, head: MtpHead, factors: Mapping[str, float]) -> MtpHead:
    """A head with its weights changed to the contract, by the factors of `scale_factors`; it shares all others."""
    changed: dict[str, torch.Tensor] = {}
    shift = {"w": -1.0, "1 + w": 0.0, "2 + w": 1.0}[contract.norms]
    if shift:
        # The modules add 1 in float32 for every dtype of the weight, so this adds no rounding of its own.
        norms = (name for name, module in head.named_modules() if isinstance(module, type(head.norm)))
        changed |= {f"{name}.weight": head.get_parameter(f"{name}.weight").float() + shift for name in norms}
    if contract.weights == "scaled like the target model":
        changed |= {name: head.get_parameter(name) * factor for name, factor in factors.items()}
    if contract.order == "hidden first":
        columns = changed.get("fc.weight", head.get_parameter("fc.weight")).chunk(2, dim=1)
        changed["fc.weight"] = torch.cat(columns[::-1], dim=1)
    return with_parameters(head, changed) if changed else head


def with_parameters(head: MtpHead, tensors: Mapping[str, torch.Tensor]) -> MtpHead:
    """A copy of the head with these parameters; all other parameters, and the target model, are shared."""
    copied = copy.deepcopy(head, {id(part): part for part in (head.target_model, *head.parameters())})
    for name, tensor in tensors.items():
        owner, _, last = name.rpartition(".")
        setattr(copied.get_submodule(owner), last, nn.Parameter(tensor, requires_grad=False))
    return copied


def draft_with(contract: Contract, head: MtpHead, text: TargetStates, *, depth: int) -> Iterator[Step]:
    """The drafts of a head of `adapt_head` at every place of a text from `FIRST_ROW` on (and some before it)."""
    hidden = text.after if contract.hidden == "after the final norm" else text.before
    tokens, offset = text.tokens, 0
    if contract.tokens == "x[p]":
        tokens = torch.cat([tokens[:1], tokens[:-1]])
    elif contract.tokens == "x[p+2]":
        tokens, hidden, offset = tokens[1:], hidden[:-1], 1
    steps = draft_chains(
        head,
        tokens,
        hidden,
        depth=depth,
        prefilled=contract.cache == "prefilled",
        feedback=None if contract.chain == "after mtp.norm" else lambda before, _: before,
    )
    for step in steps:
        yield replace(step, rows=range(step.rows.start + offset, step.rows.stop + offset))
