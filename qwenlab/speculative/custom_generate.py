"""`CustomGenerate`: speculative decoding inside transformers' `generate`, as its argument `custom_generate`."""

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
from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.checkpoint.mtp_head import MtpHead
from qwenlab.errors import BadArgument, BadPrompt, NothingDecoded
from qwenlab.speculative.context import TargetContext
from qwenlab.speculative.decoding_loop import Decoding, Settings
from qwenlab.speculative.generate import resolve_drafting
from qwenlab.speculative.policies import Policy
from qwenlab.speculative.prompts import drafting_head
from qwenlab.speculative.rollback import ReplayRollback, Rollback
from qwenlab.speculative.rounds import Round, ledger
from qwenlab.speculative.verification import VerificationRule, resolve_rule


class CustomGenerate:
    """Speculative decoding for `model.generate(**inputs, custom_generate=CustomGenerate(checkpoint, depth=3))`.

    The other arguments of `generate` work as usual: generation_config, logits processors, stopping criteria. Rows of a
    batch are decoded one after another and padded at the end: after a rollback their caches differ in length. Beams,
    returned scores and a cache that is in use raise an error. transformers does not pass two arguments on: give
    `streamer` to this object, and replace stop_strings by
    `stopping_criteria=[StopStringCriteria(tokenizer, [...])]`.

    checkpoint  an open Checkpoint, or the MtpHead of the model
    rule        by default "greedy", and "speculative_sampling" if generation_config has do_sample
    depth, policy, rollback, seed
                as in `qwenlab.speculative.generate`

    After a call, `ledger` has its rounds. Raises NoMtpHead and BadArgument; the call raises BadArgument, BadPrompt,
    BadPolicy and CannotRollBack.
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
        self.head, self.depth = drafting_head(checkpoint, depth), depth
        self.rule, self.policy, self.rollback, self.seed = rule, policy, rollback, seed
        self.streamer = streamer
        self._ledger: xr.Dataset | None = None

    @property
    def ledger(self) -> xr.Dataset:
        """The rounds of the newest call, a ledger as of `qwenlab.speculative.generate`; NothingDecoded before it."""
        if self._ledger is None:
            raise NothingDecoded(
                "No text was decoded yet.\nPass this object to model.generate(..., custom_generate=...) first."
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
        """Decode a prepared batch; called by transformers."""
        self._refuse(model, input_ids, generation_config)
        first_context = TargetContext(model, first_cache(model_kwargs.values()))  # raises for an unsuitable cache
        config: Any = generation_config
        temperature = float(config.temperature or 1) if config.do_sample else 0.0
        name = self.rule or ("speculative_sampling" if config.do_sample else "greedy")
        rule = resolve_rule(name, temperature, where="CustomGenerate")
        settings = Settings(self.depth, rule, self.policy, resolve_drafting(None, rule), logits_processor)
        mask = model_kwargs.get("attention_mask")
        rows, rounds = list[torch.Tensor](), list[list[Round]]()
        for number, row in enumerate(input_ids):
            prompt = row if mask is None else row[mask[number].bool()]
            context = first_context if len(input_ids) == 1 else TargetContext(model)
            if logits_processor:
                settings = replace(settings, processors=_for_row(logits_processor, number, input_ids, len(prompt)))
            decoding = Decoding(
                self.head,
                prompt,
                settings,
                self.rollback,
                max_new_tokens=config.max_length - input_ids.shape[1],
                seed=self.seed + number,
                context=context,
                stop=_stop_function(stopping_criteria, row, len(prompt)),
            )
            _run(decoding, self.streamer)
            rounds.append(decoding.rounds)
            rows.append(torch.cat([row, row.new_tensor(decoding.tokens[decoding.begin :])]))
        names = ", ".join(type(processor).__name__ for processor in logits_processor)
        drawn: dict[str, Any] = {"temperature": temperature, "seed": self.seed, "processors": names}
        attrs = settings.attrs(rollback=self.rollback.name, **drawn)
        self._ledger = ledger(rounds, depth=self.depth, labels=[""] * len(rows), attrs=attrs)
        sequences: Any = pad_sequence(rows, batch_first=True, padding_value=config.pad_token_id or 0)
        if config.return_dict_in_generate:
            cached: dict[str, Any] = {cache_argument(GenerateDecoderOnlyOutput): context.cache}
            return GenerateDecoderOnlyOutput(sequences=sequences, **cached)
        return sequences

    def _refuse(self, model: PreTrainedModel, input_ids: torch.Tensor, config: Any) -> None:
        """Raise BadArgument or BadPrompt for arguments that speculative decoding does not support."""
        flags = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
        unsupported = [name for name in ("num_beams", "num_return_sequences") if (getattr(config, name) or 1) > 1]
        unsupported += [name for name in flags if getattr(config, name)]
        if self.streamer is not None and len(input_ids) > 1:
            unsupported.append("streamer, with more than one prompt")
        if unsupported:
            raise BadArgument(
                f"Speculative decoding does not support {', '.join(unsupported)}.\n"
                "Leave that out, or generate without drafts."
            )
        if not input_ids.shape[1]:
            raise BadPrompt(
                "Speculative decoding got no tokens: the MTP head needs the token of each hidden state.\n"
                "Give input_ids, not inputs_embeds."
            )
        if self.head.target_model is not model:
            raise BadArgument(
                f"This MTP head belongs to another {type(self.head.target_model).__name__} than the one "
                "that generates.\n"
                "Use the head of the generating model: qwenlab.open(...) returns both."
            )


def _for_row(processors: LogitsProcessorList, number: int, rows: torch.Tensor, begin: int) -> LogitsProcessorList:
    """Processors for one row of a batch. They get all rows, as some processors depend on each row's padding."""

    def process(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        batch: Any = torch.cat([rows[number : number + 1], tokens[:, begin:]], dim=1).expand(len(rows), -1)
        processed: torch.Tensor = processors(batch, scores.expand(len(rows), -1))
        return processed[number : number + 1]

    return LogitsProcessorList([process])


def _stop_function(criteria: StoppingCriteriaList, row: torch.Tensor, begin: int) -> Any:
    """A function of the tokens: whether transformers' criteria end the text; they get the row with its padding."""

    def stop(tokens: list[int]) -> bool:
        padded = torch.cat([row, row.new_tensor(tokens[begin:])])[None]
        return any(bool(ends(padded, None).all()) for ends in criteria if type(ends).__name__ != "MaxLengthCriteria")

    return stop


def _run(decoding: Decoding, streamer: BaseStreamer | None) -> None:
    """Decode one text to its end; `streamer` gets the prompt and then every token."""
    put = streamer.put if streamer is not None else lambda _: None
    put(torch.tensor([decoding.tokens]))
    decoding.run(lambda tokens: [put(torch.tensor([token])) for token in tokens])
    if streamer is not None:
        streamer.end()
