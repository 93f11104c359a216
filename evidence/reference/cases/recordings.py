"""Recordings of every probe, in each way a model can read texts, with every statistic of them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from evidence.reference.cases.probes import PROBES, of_maps, of_some_layers, probe
from evidence.reference.models import MODELS, opened, padded, sequences
from evidence.reference.names import get, of
from evidence.reference.results import Cases, Timed

LABELS = ["code", "prose", "recall", "code"]
LENGTHS = (40, 23, 72, 31)


def cases() -> Cases:
    """Yield every set of probes with every way to read, for every model, and what one kind of model or file needs."""
    for model in MODELS:
        for probes in PROBES:
            for reading in READINGS:
                yield f"recordings/{model}/{probes}/{reading}", partial(recorded, model, probes, reading)
        yield f"recordings/{model}/states in a file", partial(states_in_a_file, model)
        yield f"recordings/{model}/merged", partial(merged, model)
        yield f"recordings/{model}/under edits", partial(under_edits, model)
    for toy in MODELS[:2]:
        yield f"recordings/{toy}/retrieval", partial(retrieval, toy)


def recorded(model: str, probes: str, reading: str) -> Any:
    """A recording, its statistics, and what the model returned."""
    checkpoint = opened(model)
    with get("watch")(checkpoint, *PROBES[probes](checkpoint)) as seen:
        returned = READINGS[reading](model, of(seen, "label"))
    recording = of(seen, "recording")()
    found = {name: statistic(recording) for name, statistic in statistics(model, probes, reading)}
    return {"recording": Timed(recording), "returned": returned, "statistics": found}


def prefill(model: str, label: Any) -> Any:
    """One text in one pass."""
    (row,) = sequences(model, 90)
    with torch.no_grad():
        return opened(model).model(row[None], use_cache=False).logits[0, -1]


def batch(model: str, label: Any, *, side: str) -> Any:
    """Texts of several lengths in one pass, with a label each; then half of them again."""
    inputs = padded(sequences(model, *LENGTHS), side)
    with torch.no_grad(), label(LABELS):
        logits = opened(model).model(**inputs, use_cache=False).logits[:, 20]
    with torch.no_grad(), label(LABELS[:2]):
        again = opened(model).model(**padded(sequences(model, *LENGTHS[:2]), side), use_cache=False).logits[:, 20]
    return logits, again


def decode(model: str, label: Any) -> Any:
    """A batch through a cache: a prefill, pieces of several widths, then token by token."""
    ids = torch.stack(sequences(model, 64, 64))
    cache, returned, start = None, [], 0
    with torch.no_grad(), label(LABELS[:2]):
        for width in (33, 7, 2, *[1] * 14):
            columns = ids[:, start : start + width]
            out = opened(model).model(columns, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, start = out.past_key_values, start + width
            returned.append(out.logits)
    return returned


def generate(model: str, label: Any) -> Any:
    """A batch of prompts, continued by transformers' own generate."""
    inputs = padded(sequences(model, 20, 9, 14), "left")
    with torch.no_grad(), label(LABELS[:3]):
        return opened(model).model.generate(**inputs, max_new_tokens=10, do_sample=False, pad_token_id=0)


def training(model: str, label: Any) -> Any:
    """A step of training: the loss, and the gradients of all parameters."""
    module = opened(model).model
    inputs = padded(sequences(model, *LENGTHS), "right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    module.train()
    try:
        with label(LABELS):
            loss = module(**inputs, labels=labels, use_cache=False).loss
            loss.backward()
        return {"loss": loss, "gradients": gradients(module)}
    finally:
        module.eval().zero_grad(set_to_none=True)


def gradients(module: torch.nn.Module) -> dict[str, Any]:
    """Every vector of gradients, and of larger ones a hash and the first row."""
    grads = {name: each.grad for name, each in module.named_parameters() if each.grad is not None}
    return {
        name: grad
        if grad.ndim == 1
        else {"hash": hashlib.sha256(grad.numpy().tobytes()).hexdigest(), "first": grad.flatten()[:16]}
        for name, grad in grads.items()
    }


READINGS: dict[str, Callable[[str, Any], Any]] = {
    "prefill": prefill,
    "left": partial(batch, side="left"),
    "right": partial(batch, side="right"),
    "decode": decode,
    "generate": generate,
    "training": training,
}


def statistics(model: str, probes: str, reading: str) -> Iterable[tuple[str, Callable[[Any], Any]]]:
    """The statistics that a recording has enough tokens and texts for."""
    every = {
        "thorough": ["attention_distance", "gates", "half_life", "key_collision", "writing", "residual"],
        "states": ["state_rank", "state_growth", "retention", "state_precision"],
        "maps": ["reach"],
    }
    routed = ["routing", "expert_load", "distinct_experts", "unused_experts", "coactivation", "layer_overlap"]
    labelled = {"key_collision", "coactivation", "layer_overlap"}
    chosen = every.get(probes, [])
    if probes == "thorough":
        yield from (
            (name, lambda found, name=name: Timed(stat(name, found))) for name in ("layer_table", "time_by_kind")
        )
        if reading in ("decode", "generate"):
            yield "memory", partial(stat, "memory")
        if "dense" not in model:
            chosen = [*chosen, *routed]
            if reading in ("left", "right", "training"):
                yield "specialisation", partial(stat, "specialisation")
    for name in chosen:
        yield name, partial(stat, name)
        if reading in ("left", "right") and name not in labelled:
            yield f"{name} by label", partial(stat, name, by_label=True)
    if probes == "states":
        yield "retention by writes", partial(stat, "retention", by="writes")
        yield "state_rank of all", partial(stat, "state_rank", by_position=False)
    if probes in ("maps", "blocks"):
        yield "attention_map of a DeltaNet head", partial(stat, "attention_map", layer=0, head=1)
        yield "attention_map of an attention head", partial(stat, "attention_map", layer=3, head=1)


def stat(name: str, recording: Any, **options: Any) -> xr.Dataset:
    """One statistic of a recording."""
    found: xr.Dataset = get(f"stats.{name}")(recording, **options)
    return found


def states_in_a_file(model: str) -> Any:
    """States that DeltaState writes to a file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "states.nc")
        with get("watch")(opened(model), probe("DeltaState", steps=[2, 30], to=file)) as seen:
            batch(model, of(seen, "label"), side="left")
        return xr.load_dataset(file)


def merged(model: str) -> Any:
    """Recordings of two readings, merged, saved and opened again."""
    found = []
    for reading in ("left", "decode"):
        with get("watch")(opened(model), *of_some_layers(opened(model)), *of_maps(None)) as seen:
            READINGS[reading](model, partial(same_label, seen))
        found.append(of(seen, "recording")())
    both = of(found[0], "merge")(found[1])
    with tempfile.TemporaryDirectory() as folder:
        return get("Recording").open(of(both, "save")(Path(folder, "both.nc")))


def same_label(seen: Any, names: Any) -> Any:
    """One label for whatever is read."""
    return of(seen, "label")("same")


def under_edits(model: str) -> Any:
    """What probes see while edits act."""
    checkpoint = opened(model)
    edits = [
        get("probe.zero")("layers.1.mixer"),
        get("probe.scale")("layers.*.mixer.heads", heads=[1], by=0.5),
        get("probe.window")(6),
        get("probe.set_gate")("layers.0.mixer.decay", to=0.9),
    ]
    maps = probe("SoftmaxAttention", every=1)
    with get("edit")(checkpoint, *edits), get("watch")(checkpoint, *PROBES["thorough"](checkpoint), maps) as seen:
        returned = decode(model, of(seen, "label")), prefill(model, None)
    return {"recording": Timed(of(seen, "recording")()), "returned": returned}


def retrieval(toy: str) -> Any:
    """Weights on the values that recall texts ask for."""
    checkpoint = opened(toy)
    recall = get("tasks.recall_texts")(4, 4, questions=2)
    questions = get("tasks.recall_questions")(checkpoint, recall)
    with get("watch")(checkpoint, *of_maps(checkpoint)) as seen:
        get("tasks.read")(checkpoint, recall)
    return questions, get("stats.retrieval")(of(seen, "recording")(), questions)
