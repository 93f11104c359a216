"""`python -m benchmarks.memory MODEL VARIANT TEXTS TOKENS...`: extra peak memory of a variant."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.models import build
from benchmarks.variants import remembering, variants

PAGE = 4096


def extra_bytes(model: str, variant: str, tokens: int, texts: int = 1) -> int:
    """Peak bytes of a variant in excess of those before the call, measured in a fresh process."""
    return extra_bytes_by_length(model, variant, [tokens], texts)[0]


def extra_bytes_by_length(model: str, variant: str, lengths: Sequence[int], texts: int = 1) -> list[int]:
    """Extra peak bytes for several lengths, one after the other in one fresh process, the shortest first.

    By default, glibc raises its mmap threshold at run time, so that resident memory depends on the layout of its heap.
    The threshold is fixed for every variant, so that freed memory is returned to the system.
    """
    command = [sys.executable, "-m", "benchmarks.memory", model, variant, str(texts), *map(str, sorted(lengths))]
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    fixed = others | {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=fixed)
    return list(json.loads(done.stdout.splitlines()[-1]))


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class Peak(threading.Thread):
    """Thread that records the peak of the resident memory, sampled every millisecond."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.ended = resident(), threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.001):
            self.bytes = max(self.bytes, resident())


def main(name: str, variant: str, texts: int, lengths: Sequence[int]) -> None:
    """Print the extra peak bytes of each length as a list."""
    model = build(name)
    context = (variants("prefill") | remembering())[variant]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        with context(model):  # memory that is allocated only once does not count
            model(torch.zeros(1, 64, dtype=torch.long, device=model.device))
        peaks = []
        for tokens in lengths:
            ids = torch.randint(3, model.config.vocab_size, (texts, 1, tokens), generator=generator).to(model.device)
            peaks.append(peak(model, context, ids))
    print(json.dumps(peaks))


def peak(model: PreTrainedModel, context: Callable[..., Any], ids: torch.Tensor) -> int:
    """Peak bytes while reading texts [text, 1, position], in excess of those before."""
    gc.collect()
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before, monitor = resident(), Peak()
        monitor.start()
    with context(model):
        for text in ids:
            model(text, logits_to_keep=1)
    if on_gpu:
        return torch.cuda.max_memory_allocated() - before
    monitor.ended.set()
    monitor.join()
    return max(monitor.bytes, resident()) - before


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), [int(tokens) for tokens in sys.argv[4:]])
