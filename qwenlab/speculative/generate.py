"""`generate`: decode prompts with drafts of the MTP head, verified by the target model; text and ledger of rounds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, get_args

import xarray as xr
from tqdm.auto import tqdm
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from qwenlab.arguments import choice
from qwenlab.capture.provenance import provenance_of
from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.errors import BadArgument, InterruptedWarning
from qwenlab.record.recording import Recording
from qwenlab.speculative.decoding_loop import Decoding, Drafting, Settings
from qwenlab.speculative.policies import Policy
from qwenlab.speculative.prompts import Prompt, check_labels, drafting_head, encode_prompts, end_tokens_of
from qwenlab.speculative.rollback import ReplayRollback, Rollback
from qwenlab.speculative.rounds import ledger
from qwenlab.speculative.verification import VerificationRule, resolve_rule


@dataclass(frozen=True, eq=False)
class Generated:
    """Result of `generate`: texts, rounds, provenance.

    tokens     tokens of each text, with its prompt;  begin: length of its prompt
    ended      why each text ended: "eos", "length", or "interrupted"
    texts      the new part of each text, as a string
    labels     label of each text
    ledger     all rounds, for `qwenlab.stats.acceptance` and `qwenlab.widgets.strip`
    facts      provenance, the attributes of `recording()`
    """

    tokens: list[list[int]]
    begin: list[int]
    ended: list[str]
    texts: list[str]
    labels: list[str]
    max_new_tokens: int
    ledger: xr.Dataset
    facts: dict[str, Any] = field(repr=False)

    def recording(self) -> Recording:
        """The ledger as the node "rounds" of a Recording, with its facts."""
        return Recording({"rounds": self.ledger}, self.facts)

    @property
    def new_tokens(self) -> int:
        """Number of emitted tokens."""
        return sum(len(tokens) - begin for tokens, begin in zip(self.tokens, self.begin, strict=True))

    def __repr__(self) -> str:
        ledger, attrs = self.ledger, self.ledger.attrs
        rounds = ledger.sizes["round"]
        return (
            f"Generated({len(self.tokens)} texts, {self.new_tokens:,} new tokens in {rounds:,} rounds; "
            f"rule {attrs['rule']}, depth {attrs['depth']}, policy {attrs['policy']}: "
            f"accepted {int(ledger['accepted'].sum()):,} of {int(ledger['drafted'].sum()):,} drafts)"
        )

    def _repr_html_(self) -> str:
        shown = "".join(
            f'<div style="margin-top:.5em">{escape(label or f"text {i}")}, ended by {escape(ended)}</div>'
            f'<pre style="white-space:pre-wrap;margin:0">{escape(text)}</pre>'
            for i, (label, ended, text) in enumerate(zip(self.labels, self.ended, self.texts, strict=True))
        )
        return f"<div>{escape(repr(self))}</div>{shown}"


def generate(
    checkpoint: Checkpoint,
    prompts: Prompt | Sequence[Prompt],
    *,
    depth: int,
    max_new_tokens: int = 128,
    rule: str | VerificationRule = "greedy",
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    drafting: Drafting | None = None,
    policy: Policy | None = None,
    rollback: type[Rollback] | Rollback = ReplayRollback,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    progress: bool = True,
) -> Generated:
    """Decode with drafts of the MTP head, verified by the target model and rolled back exactly.

    Each round drafts up to `depth` tokens with the head (chained: its own y and draft are its next input), reads them
    in one forward pass of the target model, accepts by the rule, rolls the caches back, and emits the accepted tokens
    and one token of the target model. The head's cache has the prompt, and only true hidden states. Prompts are decoded
    one after another: after a rollback their caches have different lengths, which a transformers batch cannot hold.

    depth        maximum drafts per round; fewer near max_new_tokens
    rule         "greedy", "speculative_sampling", "exact_match", or a `VerificationRule`
    temperature, top_k, top_p
                 of the target model's distribution under rules that sample, and of the head's if drafts are sampled
    drafting     "greedy": the head's argmax; "sampled": drawn from its distribution. By default sampled under
                 speculative_sampling, where it accepts the most, and greedy under the other rules
    policy       `FixedDepth`, `Threshold`, `ExpectedValue`, or any callable: see `qwenlab.speculative.policies`
    rollback     `ReplayRollback` (of the delta rule), `RerunRollback` (snapshot and rerun), or your own `Rollback`
    seed         of the random numbers; text i uses seed + i, independent of the other texts
    labels       label of each prompt, such as its domain; by default ""

    Interrupted (Ctrl-C), it returns the text decoded until then, with a warning. Raises NoMtpHead, BadPrompt,
    BadPolicy, CannotRollBack and BadArgument.
    """
    head = drafting_head(checkpoint, depth)
    texts = encode_prompts(checkpoint, prompts, max_new_tokens)
    names = [""] * len(texts) if labels is None else check_labels(labels, len(texts), "prompt")
    rule = resolve_rule(rule, temperature)
    processors = warpers(temperature, top_k, top_p)
    settings = Settings(depth, rule, policy, resolve_drafting(drafting, rule), processors, end_tokens_of(checkpoint))
    decoded: list[Decoding] = []
    with tqdm(total=len(texts) * max_new_tokens, unit="token", desc="decoding", disable=not progress) as bar:
        try:
            for number, prompt in enumerate(texts):
                options: Any = {"max_new_tokens": max_new_tokens, "seed": seed + number}
                decoded.append(Decoding(head, prompt, settings, rollback, **options))
                decoded[-1].run(lambda tokens: bar.update(len(tokens)))
                bar.update(decoded[-1].limit - len(decoded[-1].tokens))  # the tokens after an early end of text
        except KeyboardInterrupt:
            if not decoded:
                raise
            warnings.warn(
                f"Decoding was interrupted in text {len(decoded) - 1} of {len(texts)}; the text decoded so far is "
                "returned.",
                InterruptedWarning,
                stacklevel=2,
            )
    truncated = {"top_k": 0 if top_k is None else top_k, "top_p": 1.0 if top_p is None else top_p}
    attrs = settings.attrs(rollback=rollback.name, temperature=temperature, seed=seed, **truncated)
    return _result(checkpoint, decoded, names, max_new_tokens, attrs)


def warpers(temperature: float, top_k: int | None, top_p: float | None) -> LogitsProcessorList:
    """Logits processors of transformers for temperature, top-k and top-p; raises BadArgument if they have no effect."""
    if temperature == 0 and (top_k is not None or top_p is not None):
        raise BadArgument(
            "top_k and top_p truncate the sampling distribution, and temperature=0 does not sample.\n"
            "Give a temperature and a rule that samples, or leave top_k and top_p out."
        )
    chosen: list[Any] = []
    if temperature not in (0, 1):
        chosen.append(TemperatureLogitsWarper(float(temperature)))
    if top_k is not None:
        chosen.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        chosen.append(TopPLogitsWarper(top_p))
    return LogitsProcessorList(chosen)


def resolve_drafting(drafting: Drafting | None, rule: VerificationRule) -> Drafting:
    """The way of drafting, with its default; raises BadArgument if the rule cannot use it."""
    if drafting is None:
        return "sampled" if rule.name == "speculative_sampling" else "greedy"
    if choice("generate", "drafting", drafting, get_args(Drafting)) == "sampled" and not rule.samples:
        raise BadArgument(
            f"drafting='sampled' under rule={rule.name!r}: the rule would reject most drafts that are not the argmax.\n"
            "Leave drafting out, or choose a rule that samples."
        )
    return drafting


def _result(
    checkpoint: Checkpoint, decoded: list[Decoding], labels: list[str], max_new_tokens: int, attrs: dict[str, Any]
) -> Generated:
    tokens = [decoding.tokens for decoding in decoded]
    names = labels[: len(decoded)]
    seed = attrs["seed"] if decoded[0].settings.rule.samples else ""
    return Generated(
        tokens=tokens,
        begin=[decoding.begin for decoding in decoded],
        ended=[decoding.ended or "interrupted" for decoding in decoded],
        texts=[str(checkpoint.tokenizer.decode(each.tokens[each.begin :])) for each in decoded],
        labels=names,
        max_new_tokens=max_new_tokens,
        ledger=ledger([decoding.rounds for decoding in decoded], depth=attrs["depth"], labels=names, attrs=attrs),
        facts=provenance_of(checkpoint, tokens, names, seed=seed, drafted=True),
    )
