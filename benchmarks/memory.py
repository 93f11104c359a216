"""Peak memory of a variant, above that before the call: `python -m benchmarks.memory MODEL VARIANT TOKENS TEXTS`."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import torch

from benchmarks.models import build
from benchmarks.variants import variants

PAGE = 4096


def extra_bytes(model: str, variant: str, tokens: int, texts: int = 1) -> int:
    """The same, measured in a fresh process.

    glibc would take ever larger blocks from its heap as it goes, and what is resident then is how it lays them out; the
    threshold is fixed for every variant, so that what is freed is given back.
    """
    command = [sys.executable, "-m", "benchmarks.memory", model, variant, str(tokens), str(texts)]
    others = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    fixed = others | {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=fixed)
    return int(json.loads(found.stdout.splitlines()[-1]))


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


def main(name: str, variant: str, tokens: int, texts: int) -> None:
    model = build(name)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, model.config.vocab_size, (texts, 1, tokens), generator=generator).to(model.device)
    with torch.no_grad():
        model(ids[0, :, :64])
        gc.collect()
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            before, peak = resident(), Peak()
            peak.start()
        with variants("prefill")[variant](model):
            for text in ids:
                model(text, logits_to_keep=1)
    if model.device.type == "cuda":
        print(torch.cuda.max_memory_allocated() - before)
        return
    peak.ended.set()
    peak.join()
    print(max(peak.bytes, resident()) - before)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
