"""Drafting inside transformers' own `generate`: one argument more, and the rounds can be counted afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import xarray as xr
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from qwenlab.checkpoint.caches import cache_argument, first_cache
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.checkpoint.open import Checkpoint
from qwenlab.errors import BadArgument, BadPrompt, NothingDecoded
from qwenlab.speculative.context import TargetContext
from qwenlab.speculative.decoding import Decoding, Settings
from qwenlab.speculative.policies import Policy
from qwenlab.speculative.prompts import checked_depth
from qwenlab.speculative.rollback import ReplayRollback, Rollback
from qwenlab.speculative.rounds import Round, ledger
from qwenlab.speculative.verification import VerificationRule, rule_of


class CustomGenerate:
    """For `model.generate(**inputs, custom_generate=custom_generate(checkpoint, depth=3))`.

    Everything else of `generate` stays: generation_config, logits processors, stopping criteria. Rows of a batch are
    decoded one after another and padded at the end: after a rollback their caches differ in length. What would not be
    honoured is refused: beams, scores to return, a cache that is in use. Two arguments never get here, because
    transformers does not hand them to a custom_generate: give `streamer` to this object, and instead of stop_strings
    `stopping_criteria=[StopStringCriteria(tokenizer, [...])]`.

    checkpoint  an open Checkpoint, or the MtpHead of the model
    rule        by default "greedy", and "speculative_sampling" where generation_config says do_sample

    After a call, `ledger` holds its rounds.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | MtpHead,
        *,
        depth: int,
        rule: str | VerificationRule | None = None,
        policy: Policy | None = None,
        rollback: type[Rollback] = ReplayRollback,
        seed: int = 0,
        streamer: BaseStreamer | None = None,
    ) -> None:
        self.head = checkpoint if isinstance(checkpoint, MtpHead) else checkpoint.require_mtp()
        self.depth = checked_depth(depth, int(self.head.config.max_position_embeddings))
        self.rule, self.policy, self.rollback, self.seed = rule, policy, rollback, seed
        self.streamer = streamer
        self._ledger: xr.Dataset | None = None

    @property
    def ledger(self) -> xr.Dataset:
        """The rounds of the newest call, as `qwenlab.speculative.generate` counts them."""
        if self._ledger is None:
            raise NothingDecoded(
                "No text was decoded yet.\nGive this object to model.generate(..., custom_generate=...) first."
            )
        return self._ledger

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Any:
        """What transformers calls once everything is prepared."""
        self._refuse(model, input_ids, generation_config)
        given_cache = TargetContext(model, first_cache(model_kwargs.values()))  # refused here, if it has to be
        given: Any = generation_config
        settings = self._settings(given, logits_processor)
        processors = settings.processors
        mask = model_kwargs.get("attention_mask")
        rows: list[torch.Tensor] = []
        made: list[list[Round]] = []
        for number, row in enumerate(input_ids):
            prompt = row if mask is None else row[mask[number].bool()]
            own = given_cache if len(input_ids) == 1 else TargetContext(model)
            if processors:
                settings = replace(settings, processors=_for_row(processors, number, input_ids, len(prompt)))
            decoding = Decoding(
                self.head,
                prompt,
                settings,
                self.rollback(),
                max_new_tokens=given.max_length - input_ids.shape[1],
                generator=torch.Generator(row.device).manual_seed(self.seed + number),
                context=own,
                stop=_stopped_by(stopping_criteria, row, len(prompt)),
            )
            made.append(_run(decoding, self.streamer))
            rows.append(torch.cat([row, row.new_tensor(decoding.tokens[decoding.begin :])]))
        attrs = settings.attrs(
            rollback=self.rollback.name,
            temperature=float(given.temperature or 1) if settings.rule.samples else 0.0,
            seed=self.seed,
            processors=", ".join(type(each).__name__ for each in processors),
        )
        self._ledger = ledger(made, depth=self.depth, labels=[""] * len(rows), attrs=attrs)
        sequences: Any = pad_sequence(rows, batch_first=True, padding_value=given.pad_token_id or 0)
        if given.return_dict_in_generate:
            cached: dict[str, Any] = {cache_argument(GenerateDecoderOnlyOutput): own.cache}
            return GenerateDecoderOnlyOutput(sequences=sequences, **cached)
        return sequences

    def _refuse(self, model: PreTrainedModel, input_ids: torch.Tensor, given: Any) -> None:
        """Raise BadArgument or BadPrompt for what cannot be done here."""
        wrong = {
            "num_beams": (given.num_beams or 1) > 1,
            "num_return_sequences": (given.num_return_sequences or 1) > 1,
            "output_scores": given.output_scores,
            "output_logits": given.output_logits,
            "output_attentions": given.output_attentions,
            "output_hidden_states": given.output_hidden_states,
            "streamer, with more than one prompt": self.streamer is not None and len(input_ids) > 1,
        }
        if asked := [name for name, found in wrong.items() if found]:
            raise BadArgument(
                f"Drafted decoding cannot honour {', '.join(asked)}.\nLeave that out, or generate without drafts."
            )
        if not input_ids.shape[1]:
            raise BadPrompt(
                "Drafted decoding reads tokens, and was given none: the MTP head needs the token beside each hidden "
                "state.\nGive input_ids, not inputs_embeds."
            )
        if self.head.trunk is not model:
            raise BadArgument(
                f"This MTP head belongs to another {type(self.head.trunk).__name__} than the one that generates.\n"
                "Give the head of this very model: qwenlab.open(...) returns both."
            )

    def _settings(self, given: Any, processors: LogitsProcessorList) -> Settings:
        rule = self.rule or ("speculative_sampling" if given.do_sample else "greedy")
        judge = rule_of(rule, float(given.temperature or 1) if given.do_sample else 0.0)
        sampled = judge.name == "speculative_sampling"
        return Settings(self.depth, judge, self.policy, "sampled" if sampled else "greedy", processors)


def _for_row(processors: LogitsProcessorList, number: int, rows: torch.Tensor, begin: int) -> LogitsProcessorList:
    """Processors as one row of a batch meets them: some know of each row how much of it is padding."""

    def process(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        batch: Any = torch.cat([rows[number : number + 1], tokens[:, begin:]], dim=1).expand(len(rows), -1)
        processed: torch.Tensor = processors(batch, scores.expand(len(rows), -1))
        return processed[number : number + 1]

    return LogitsProcessorList([process])


def _stopped_by(criteria: StoppingCriteriaList, row: torch.Tensor, begin: int) -> Any:
    """Whether a text ends here by transformers' criteria, which see the row as it was given, padding included."""

    def stop(tokens: list[int]) -> bool:
        so_far = torch.cat([row, row.new_tensor(tokens[begin:])])[None]
        return any(bool(each(so_far, None).all()) for each in criteria if type(each).__name__ != "MaxLengthCriteria")

    return stop


def _run(decoding: Decoding, streamer: BaseStreamer | None) -> list[Round]:
    """Decode one text to its end."""
    rounds: list[Round] = []
    if streamer is not None:
        streamer.put(torch.tensor([decoding.tokens]))
    decoding.start()
    shown = decoding.begin
    while True:
        if streamer is not None:
            for token in decoding.tokens[shown:]:
                streamer.put(torch.tensor([token]))
            shown = len(decoding.tokens)
        if decoding.ended:
            break
        rounds.append(decoding.step())
    if streamer is not None:
        streamer.end()
    return rounds
