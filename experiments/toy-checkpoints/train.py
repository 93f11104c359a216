"""Train a toy checkpoint: `python train.py toy-moe --out FOLDER`. Interrupted, the same command goes on where it was.

Two kinds of batch in every step: text windows (next-token loss on every token) and recall sequences (loss on the
asked-for values, a tenth of it on the rest: their keys are noise). The MTP head learns on both, chained three deep in
every third step. Recall comes first, alone and in small steps: on the whole mixture from the start it is hardly learnt.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from corpus import TRAINING_SEED, arithmetic, code, prose, recall
from tokenizer import END_OF_TEXT, save_tokenizer, train_tokenizer
from tokenizers import Tokenizer
from tqdm.auto import tqdm
from trunk import VOCABULARY, build

from qwenlab.checkpoint.mtp_head import MtpHead

IGNORE = -100


@dataclass(frozen=True)
class Leg:
    """A stretch of the training with one mixture and one cosine of the learning rate.

    steps    optimiser steps of the leg
    mixture  shares of code, prose and arithmetic among the text windows; without text the leg is recall alone
    pairs    pair counts of the recall sequences, drawn evenly
    """

    steps: int
    learning_rate: float
    text_batch: int
    recall_batch: int
    recall_length: int
    pairs: tuple[int, ...]
    mixture: tuple[float, float, float]
    mtp_weight: float
    goes_on: bool = False  # with the cosine of the leg before, instead of a new one


PAIRS = (2, 4, 4, 8, 8, 12, 16, 24, 32)


@dataclass(frozen=True)
class Recipe:
    """Everything the weights depend on, besides the code and the text."""

    legs: tuple[Leg, ...] = (
        Leg(300, 1.5e-3, 0, 16, 64, (2, 3, 4, 6, 8), (0.0, 0.0, 0.0), 0.0),
        Leg(2000, 1.5e-3, 8, 8, 128, PAIRS, (0.6, 0.25, 0.15), 0.6, goes_on=True),
        Leg(1100, 2e-3, 8, 2, 128, PAIRS, (0.55, 0.35, 0.1), 1.0),
    )
    final_learning_rate: float = 3e-5
    warmup: int = 50
    weight_decay: float = 0.05
    window: int = 256
    router_weight: float = 0.01
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return sum(leg.steps for leg in self.legs)

    def leg(self, step: int) -> Leg:
        """The leg that a step belongs to."""
        for leg in self.legs:
            if step < leg.steps:
                return leg
            step -= leg.steps
        raise IndexError("the recipe has no such step")

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine, over a leg and those that go on with it."""
        start = horizon = 0
        for leg in self.legs:
            if leg.goes_on:
                horizon += leg.steps
            elif step >= start + horizon:
                start, horizon, peak = start + horizon, leg.steps, leg.learning_rate
            else:
                break
        step -= start
        if step < self.warmup:
            return peak * (step + 1) / self.warmup
        cosine = 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / (horizon - self.warmup)))
        return self.final_learning_rate + (peak - self.final_learning_rate) * cosine


class TextWindows:
    """Random windows of the tokenised domains, drawn by the shares of a leg's mixture."""

    def __init__(self, tokenizer: Tokenizer, window: int, domains: Sequence[Sequence[str]]) -> None:
        end = tokenizer.token_to_id(END_OF_TEXT)
        self.streams = [
            np.concatenate([np.array([*e.ids, end], dtype=np.uint16) for e in tokenizer.encode_batch(list(texts))])
            for texts in domains
        ]
        self.window = window

    def batch(self, rng: random.Random, leg: Leg) -> torch.Tensor:
        """int [text_batch, window]"""
        window, rows = self.window, []
        for stream in rng.choices(self.streams, leg.mixture, k=leg.text_batch):
            start = rng.randrange(len(stream) - window)
            rows.append(stream[start : start + window].astype(np.int64))
        return torch.from_numpy(np.stack(rows))


class RecallBatches:
    """Recall sequences with the labels of the asked-for values apart from those of the rest."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end, self.question = tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id("?")

    def batch(self, rng: random.Random, leg: Leg) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """tokens, asked and other labels, each int [recall_batch, recall_length]; labels are of the token itself."""
        tokens = torch.full((leg.recall_batch, leg.recall_length), self.end)
        for row in tokens:
            ids = self.tokenizer.encode(recall(rng, leg.pairs, leg.recall_length)).ids
            row[: len(ids)] = torch.tensor(ids)
        is_value = F.pad(tokens[:, :-1] == self.question, (1, 0))
        real = F.pad(tokens[:, :-1] != self.end, (1, 0), value=True)
        return tokens, tokens.masked_fill(~is_value, IGNORE), tokens.masked_fill(is_value | ~real, IGNORE)


def next_token_loss(logits: torch.Tensor, labels: torch.Tensor, shift: int = 1) -> torch.Tensor:
    """Mean cross entropy in nats of `labels` moved `shift` to the left; IGNORE is left out."""
    return F.cross_entropy(
        logits[:, : labels.shape[1] - shift].flatten(0, 1), labels[:, shift:].flatten(), ignore_index=IGNORE
    )


def chained_loss(head: MtpHead, tokens: torch.Tensor, hidden: torch.Tensor, depth: int) -> torch.Tensor:
    """Mean over depths 1 to `depth` of the loss of the head's drafts, each depth fed the `y` of the one before."""
    losses = []
    for k in range(1, depth + 1):
        hidden = head(tokens[:, k:], hidden[:, :-1])
        losses.append(F.cross_entropy(head.logits(hidden[:, :-1]).flatten(0, 1), tokens[:, k + 1 :].flatten()))
    return torch.stack(losses).mean()


class Training:
    """Target model, head, optimiser and the batches of one run; `state` and `restore` make it resumable."""

    def __init__(
        self, name: str, tokenizer: Tokenizer, recipe: Recipe, domains: Sequence[Sequence[str]], device: str = "cpu"
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.name, self.recipe, self.device, self.step = name, recipe, device, 0
        self.trunk, self.head = (module.to(device).train() for module in build(name))
        self.routed = hasattr(self.trunk.config, "num_experts")
        parameters = [*self.trunk.parameters(), *self.head.parameters()]
        decayed = [p for p in parameters if p.ndim >= 2]
        plain = [p for p in parameters if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
        self.parameters = parameters
        self.text, self.recall = TextWindows(tokenizer, recipe.window, domains), RecallBatches(tokenizer)

    def state(self) -> dict:
        return {
            "step": self.step,
            "trunk": self.trunk.state_dict(),
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict) -> None:
        self.step = state["step"]
        self.trunk.load_state_dict(state["trunk"])
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])

    def run(self, tokens: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """The target model's output on these tokens, and its hidden states after the final norm."""
        routed = {"output_router_logits": True} if self.routed else {}
        out = self.trunk(tokens, use_cache=False, output_hidden_states=True, **routed)
        return out, out.hidden_states[-1]

    def balance(self, out: Any) -> torch.Tensor | float:
        """The weighted load-balancing loss of a pass; nothing in a dense trunk."""
        return self.recipe.router_weight * out.aux_loss if self.routed else 0.0

    def advance(self) -> dict[str, float]:
        """One optimiser step; its losses in nats."""
        leg = self.recipe.leg(self.step)
        rng = random.Random(f"{self.recipe.seed}-{self.step}")
        losses: dict[str, torch.Tensor] = {}

        tokens, asked, rest = (x.to(self.device) for x in self.recall.batch(rng, leg))
        out, hidden = self.run(tokens)
        losses["recall"] = next_token_loss(out.logits, asked)
        total = losses["recall"] + 0.1 * next_token_loss(out.logits, rest) + self.balance(out)
        if leg.text_batch:
            if self.step % 3 == 1:
                total = total + leg.mtp_weight * chained_loss(self.head, tokens, hidden, 1)
            tokens = self.text.batch(rng, leg).to(self.device)
            out, hidden = self.run(tokens)
            losses["text"] = next_token_loss(out.logits, tokens)
            losses["mtp"] = chained_loss(self.head, tokens, hidden, 1 if self.step % 3 else 3)
            total = total + losses["text"] + leg.mtp_weight * losses["mtp"] + self.balance(out)

        total.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {name: loss.item() for name, loss in losses.items()}


def tokenizer_at(folder: Path) -> Tokenizer:
    """The tokenizer in `folder`, trained on first use."""
    path = folder / "tokenizer.json"
    if not path.exists():
        rng = random.Random(0)
        sums = arithmetic(TRAINING_SEED)
        texts = [*rng.sample(code()[0], 150), *rng.sample(prose()[0], 250)]
        texts += [next(sums) for _ in range(100)] + [recall(rng, (8,), 64) for _ in range(3000)]
        save_tokenizer(train_tokenizer(texts, VOCABULARY), folder)
    return Tokenizer.from_file(str(path))


def domains() -> tuple[list[str], list[str], list[str]]:
    """Training text of the three domains of `recipe.mixture`."""
    sums = arithmetic(TRAINING_SEED)
    return code()[0], prose()[0], [next(sums) for _ in range(4000)]


def run(training: Training, folder: Path) -> None:
    """Train to the end of the recipe, keeping state.pt and losses.jsonl in `folder`; goes on from what lies there."""
    kept, log, before = folder / "state.pt", folder / "losses.jsonl", 0.0
    if kept.exists():
        training.restore(torch.load(kept, map_location=training.device, weights_only=True))
    if log.exists():
        lines = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= training.step]
        log.write_text("".join(f"{line}\n" for line in lines))
        before = json.loads(lines[-1])["seconds"] if lines else 0.0
    total, began = training.recipe.steps, time.perf_counter()
    with log.open("a") as out, tqdm(total=total, initial=training.step, desc=training.name) as bar:
        while training.step < total:
            losses = training.advance()
            seconds = round(before + time.perf_counter() - began, 2)
            out.write(json.dumps({"step": training.step, "seconds": seconds, **losses}) + "\n")
            bar.set_postfix({name: f"{loss:.2f}" for name, loss in losses.items()}, refresh=False)
            bar.update()
            if training.step % 100 == 0 or training.step == total:
                out.flush()
                partial = folder / "state.partial"
                torch.save(training.state(), partial)
                partial.rename(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=("toy-dense", "toy-moe"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: state.pt, losses.jsonl, tokenizer")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    recipe, folder = Recipe(), arguments.out
    folder.mkdir(parents=True, exist_ok=True)

    training = Training(arguments.name, tokenizer_at(folder), recipe, domains(), arguments.device)
    (folder / "recipe.json").write_text(json.dumps({"name": arguments.name, **asdict(recipe)}, indent=2) + "\n")
    run(training, folder)


if __name__ == "__main__":
    main()
