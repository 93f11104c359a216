"""`python -m benchmarks.streamed WAY FOLDER MEMORY TEXTS TOKENS`: one run of a checkpoint, measured from inside."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import qwenlab as ql
from benchmarks.cold_files import bytes_from_disk, drop
from qwenlab.checkpoint.checkpoint import Checkpoint


def open_checkpoint(folder: Path, memory: str | None) -> Checkpoint:
    """Open a checkpoint with a budget for its weights, or whole for None: how qwenlab streams is asked for here."""
    return ql.open(folder, **({} if memory is None else {"memory": memory}))


def watch_texts(checkpoint: Checkpoint, ids: torch.Tensor) -> None:
    """Read texts [text, position] under the default probes."""
    with torch.no_grad(), ql.watch(checkpoint.model, *ql.probes.defaults(checkpoint.model)) as seen:
        checkpoint.model(ids, use_cache=False, logits_to_keep=1)
    seen.recording()


def sweep_mixers(checkpoint: Checkpoint, ids: torch.Tensor) -> None:
    """Ablate each mixer, on texts [text, position]."""
    rows = tuple(map(tuple, ids.tolist()))
    task = ql.tasks.Task("drawn", rows, (tuple(range(1, ids.shape[1])),) * len(rows))
    ql.ablations.sweep(checkpoint, ql.ablations.units(checkpoint), [task], batch_size=len(rows), progress=False)


def open_offloaded(folder: Path, memory: str | None) -> PreTrainedModel:
    """The model with accelerate's disk offload: every layer is read from the safetensors when it runs."""
    resident = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    layers = len(ql.anatomy(str(folder)).layer_types)
    places = dict.fromkeys(resident, "cpu") | {f"model.layers.{layer}": "disk" for layer in range(layers)}
    return AutoModelForCausalLM.from_pretrained(
        folder, device_map=places, offload_folder=tempfile.mkdtemp(dir=folder.parent), dtype="auto"
    ).eval()


def open_airllm(folder: Path, memory: str | None) -> Any:
    """The model with AirLLM, which first copies the checkpoint to one file per layer; that time does not count."""
    import airllm

    split = folder.with_name(f"{folder.name}-by-layer")
    opened = airllm.AutoModel.from_pretrained(str(folder), device="cpu", layer_shards_saving_path=str(split))
    drop(file for file in split.rglob("*.safetensors") if "visual" not in file.name)  # the vision tower stays mapped
    return opened.model


@torch.no_grad()
def read_batch(model: Any, ids: torch.Tensor) -> None:
    """Read texts [text, position] as one batch, without probes."""
    model(input_ids=ids, use_cache=False, logits_to_keep=1)


class Way(NamedTuple):
    """How a checkpoint is opened, and what is run with it."""

    open: Callable[[Path, str | None], Any]
    run: Callable[[Any, torch.Tensor], None]


WAYS = {
    "streamed": Way(open_checkpoint, watch_texts),
    "in memory": Way(lambda folder, memory: open_checkpoint(folder, None), watch_texts),
    "sweep": Way(open_checkpoint, sweep_mixers),
    "accelerate": Way(open_offloaded, read_batch),
    "AirLLM": Way(open_airllm, read_batch),
}


def measured(way: Way, folder: Path, memory: str | None, texts: int, tokens: int) -> dict[str, float]:
    """Bytes read from disks while opening and running, seconds, and seconds in which the main thread waited for bytes.

    The main thread computes (torch has one thread here). It waits for bytes while it neither runs on a processor nor is
    in the queue for one, as on a machine that is busy with other work.
    """
    drawn = torch.randint(3, 272, (texts, tokens), generator=torch.Generator().manual_seed(0))
    read, began = bytes_from_disk(), time.perf_counter()
    opened = way.open(folder, memory)
    read_opened, opening = bytes_from_disk(), time.perf_counter() - began
    began, computed, queued = time.perf_counter(), time.thread_time(), queueing()
    way.run(opened, drawn)
    seconds, computing = time.perf_counter() - began, time.thread_time() - computed
    queued = queueing() - queued
    return {
        "bytes read, opening": read_opened - read,
        "bytes read, running": bytes_from_disk() - read_opened,
        "seconds, opening": opening,
        "seconds": seconds,
        "seconds computing": computing,
        "seconds queueing": queued,
        "seconds waiting": seconds - computing - queued,
    }


def queueing() -> float:
    """Seconds in which the main thread could have run and did not: the second value of /proc/PID/schedstat."""
    return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    name, folder, memory, texts, tokens = sys.argv[1:]
    print(json.dumps(measured(WAYS[name], Path(folder), memory or None, int(texts), int(tokens))))
