"""What a toy shows on held-out text: losses, recall, what carries it, drafts, routing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from scipy import stats
from tqdm.auto import tqdm

import qwenlab as ql
from qwenlab.checkpoint.decoder import decoder_of

PAIRS = (2, 4, 8, 16, 24, 32, 40, 52)
TEXTS = 40
MAX_TOKENS = 256


def interval(values: Iterable[float]) -> dict[str, float]:
    """Mean over texts with a 95 % bootstrap interval (BCa where it exists), as numbers."""
    values = np.asarray(list(values))
    if values.std() == 0:
        return {"mean": float(values.mean()), "low": float(values.min()), "high": float(values.max()), "n": len(values)}
    found = stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0))
    low, high = found.confidence_interval
    return {"mean": float(values.mean()), "low": float(low), "high": float(high), "n": len(values)}


def unigram_entropy(checkpoint: Any, texts: list[str]) -> float:
    """Entropy in nats of the token frequencies of these very texts: the best loss without any context."""
    ids = np.concatenate([checkpoint.tokenizer(text).input_ids[1:MAX_TOKENS] for text in texts])
    return float(stats.entropy(np.bincount(ids)))


@contextmanager
def zeroed(checkpoint: Any, layers: Iterable[int], word: str = "mixer") -> Iterator[None]:
    """The outputs of these parts replaced by zeros while the block runs."""
    decoder = decoder_of(checkpoint.model)

    def zero(module: torch.nn.Module, args: Any, out: Any) -> Any:
        return (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)

    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(decoder.part(layer, word).register_forward_hook(zero).remove)
        yield


def losses(checkpoint: Any) -> dict[str, Any]:
    """Held-out loss of each domain and its unigram entropy."""
    found = {}
    for domain in ql.tasks.DOMAINS:
        texts = ql.tasks.texts(domain)[:TEXTS]
        score = ql.tasks.measure(checkpoint, [ql.tasks.text_task(checkpoint, texts, max_tokens=MAX_TOKENS)])
        loss = interval(score["loss"].values)
        loss["by_token"] = float(score["loss"].weighted(score["asked"]).mean())
        unigram = unigram_entropy(checkpoint, texts)
        found[domain] = {"loss": loss, "unigram": unigram, "under_unigram": 1 - loss["by_token"] / unigram}
    return found


def recall(checkpoint: Any, pairs: Iterable[int] = PAIRS, count: int = 128) -> dict[str, Any]:
    """Accuracy on the asked-for values by pair count."""
    found = {}
    for number in pairs:
        task = ql.tasks.recall_task(checkpoint, ql.tasks.recall_texts(number, count, seed=1))
        found[str(number)] = interval(ql.tasks.measure(checkpoint, [task], batch_size=32)["accuracy"].values)
    return found


def carriers(checkpoint: Any, pairs: Iterable[int] = (8, 24, 52)) -> dict[str, Any]:
    """Recall with the mixers of each kind zeroed; controls: as many DeltaNet mixers, and the attention layers' MLPs."""
    kinds = decoder_of(checkpoint.model)
    attention, deltanet = kinds.layers_of("full_attention"), kinds.layers_of("linear_attention")
    found = {"none": recall(checkpoint, pairs, 64)}
    for name, layers, word in (
        ("both attention mixers", attention, "mixer"),
        ("all six DeltaNet mixers", deltanet, "mixer"),
        ("MLPs of the attention layers", attention, "mlp"),
    ):
        with zeroed(checkpoint, layers, word):
            found[name] = recall(checkpoint, pairs, 64)
    by_pair = {}
    for layers in tqdm(list(itertools.combinations(deltanet, len(attention))), desc="pairs of DeltaNet mixers"):
        with zeroed(checkpoint, layers):
            by_pair[str(layers)] = recall(checkpoint, pairs, 32)
    found["two DeltaNet mixers"] = {
        str(number): {
            "mean": float(np.mean([each[str(number)]["mean"] for each in by_pair.values()])),
            "low": min(each[str(number)]["mean"] for each in by_pair.values()),
            "high": max(each[str(number)]["mean"] for each in by_pair.values()),
            "n": len(by_pair),
        }
        for number in pairs
    }
    return found


def agreement(checkpoint: Any, texts: list[list[int]], **control: Any) -> np.ndarray:
    """Teacher-forced agreement of the first draft, text by text."""
    labels = [str(number) for number in range(len(texts))]
    trace = ql.speculative.trace(checkpoint, texts, depth=1, labels=labels, progress=False, **control)
    return ql.stats.agreement(trace.recording(), by_label=True)["teacher_forced"].values[:, 0]


def drafts(checkpoint: Any) -> dict[str, Any]:
    """Teacher-forced agreement of the head's first draft, and of the same head fed the wrong hidden states."""
    found = {}
    everything = [
        checkpoint.tokenizer(text).input_ids[:MAX_TOKENS]
        for domain in ql.tasks.DOMAINS
        for text in ql.tasks.texts(domain)[:8]
    ]
    for domain in ql.tasks.DOMAINS:
        texts = [checkpoint.tokenizer(text).input_ids[:MAX_TOKENS] for text in ql.tasks.texts(domain)[:TEXTS]]
        true, strangers, shuffled = (
            agreement(checkpoint, texts, **control) for control in ({}, {"donors": everything}, {"shuffled": True})
        )
        found[domain] = {
            "agreement": interval(true),
            "strangers": interval(strangers),
            "over strangers": float(true.mean() / strangers.mean()),
            "shuffled": interval(shuffled),
            "over shuffled": float(true.mean() / shuffled.mean()),
        }
    return found


def routing(checkpoint: Any) -> dict[str, Any]:
    """Load of the experts, and what the domain says about the choice beyond a shuffled control."""
    with ql.watch(checkpoint.model, ql.probes.Routing()) as seen:
        for domain in ql.tasks.DOMAINS:
            with seen.label(domain):
                ql.tasks.feed(checkpoint, ql.tasks.texts(domain)[:TEXTS], max_tokens=MAX_TOKENS)
    recording = seen.recording()
    load = recording["routing"]["load"].sum(("label", "fold"))
    share = load / load.sum("expert")
    found = ql.stats.specialisation(recording)
    return {
        "experts": int(share.sizes["expert"]),
        "never used": int((load == 0).sum()),
        "smallest share": float(share.min()),
        "largest share": float(share.max()),
        "specialisation": {
            name: found[name].values.tolist() for name in found.data_vars if found[name].dims == ("layer",)
        },
    }
