"""Peak memory of a variant, above that before the call: `python -m benchmarks.memory MODEL VARIANT TEXTS TOKENS...`."""

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
    """The same, measured in a fresh process."""
    return extra_bytes_by_length(model, variant, [tokens], texts)[0]


def extra_bytes_by_length(model: str, variant: str, lengths: Sequence[int], texts: int = 1) -> list[int]:
    """The same for several lengths, one after the other in one fresh process, the shortest first.

    glibc would take ever larger blocks from its heap as it goes, and what is resident then is how it lays them out; the
    threshold is fixed for every variant, so that what is freed is given back.
    """
    command = [sys.executable, "-m", "benchmarks.memory", model, variant, str(texts), *map(str, sorted(lengths))]
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    fixed = others | {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=fixed)
    return list(json.loads(found.stdout.splitlines()[-1]))


def resident() -> int:
    """Bytes this process holds in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class Peak(threading.Thread):
    """Watches the resident memory every millisecond."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.ended = resident(), threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.001):
            self.bytes = max(self.bytes, resident())


def main(name: str, variant: str, texts: int, lengths: Sequence[int]) -> None:
    """Print them as a list."""
    model = build(name)
    around = (variants("prefill") | remembering())[variant]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        with around(model):  # what is loaded once is nobody's
            model(torch.zeros(1, 64, dtype=torch.long, device=model.device))
        found = []
        for tokens in lengths:
            ids = torch.randint(3, model.config.vocab_size, (texts, 1, tokens), generator=generator).to(model.device)
            found.append(peak(model, around, ids))
    print(json.dumps(found))


def peak(model: PreTrainedModel, around: Callable[..., Any], ids: torch.Tensor) -> int:
    """Bytes at the worst moment of reading these texts [text, 1, position], above those held before."""
    gc.collect()
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before, watched = resident(), Peak()
        watched.start()
    with around(model):
        for text in ids:
            model(text, logits_to_keep=1)
    if on_gpu:
        return torch.cuda.max_memory_allocated() - before
    watched.ended.set()
    watched.join()
    return max(watched.bytes, resident()) - before


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), [int(each) for each in sys.argv[4:]])
