"""Files of some hundred MiB in a process of their own: memory watched from outside, and bytes read from the disk."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM

from qwenlab.testing.checkpoints import save_shards, save_tokenizer
from qwenlab.testing.models import tiny_config

pytestmark = pytest.mark.slow
MEMORY = 300 * 2**20
ACTIVATIONS = 100 * 2**20
"""Bytes that the pass itself takes, with what malloc keeps of it."""

CHILD = """
import sys, torch, qwenlab as ql
from qwenlab.checkpoint.streaming.stream import streamed_layers
with torch.no_grad():
    ql.open("toy-dense").model(torch.zeros(1, 64, dtype=torch.long))
print("ready", flush=True)
input()
read = lambda: int(dict(line.split(": ") for line in open("/proc/self/io"))["read_bytes"])
checkpoint = ql.open(sys.argv[1], memory=sys.argv[2])
stream, ids = streamed_layers(checkpoint.model), torch.arange(64)[None]
with torch.no_grad():
    checkpoint.model(ids)  # of files that were hashed whole when they were opened: it drops them
    before, counted = read(), stream.bytes_read
    checkpoint.model(ids)
print(read() - before, stream.bytes_read - counted, flush=True)
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A random checkpoint of 1.0 GB in four shards."""
    folder = tmp_path_factory.mktemp("big")
    sizes = dict(layers=12, hidden_size=1536, intermediate_size=4608, vocab_size=60_000, head_dim=128)
    config = tiny_config("qwen3_5", **sizes, linear_key_head_dim=64, linear_value_head_dim=64)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    values = (0.02 * torch.randn(2**20)).to(torch.bfloat16)

    def random(shape):
        size = shape.numel()
        return values.repeat(-(-size // len(values)))[:size].view(shape)

    save_shards({name: random(parameter.shape) for name, parameter in model.named_parameters()}, folder, 4)
    (folder / "config.json").write_text(json.dumps(config.to_dict() | {"dtype": "bfloat16"}))
    save_tokenizer(folder)
    for file in folder.iterdir():
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    return folder


def resident(process):
    lines = dict(line.split(":") for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    return sum(int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))


def test_a_gigabyte_runs_within_300_mib_and_is_read_once(big):
    options = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with psutil.Popen([sys.executable, "-c", CHILD, str(big), str(f"{MEMORY}B")], **options) as child:
        assert child.stdout.readline() == "ready\n"
        base = peak = resident(child)
        child.stdin.write("\n")
        child.stdin.flush()
        while child.poll() is None and child.status() != psutil.STATUS_ZOMBIE:
            try:
                peak = max(peak, resident(child))
            except (OSError, KeyError):
                break
            time.sleep(0.002)
        from_disk, counted = map(int, child.stdout.readline().split())
    stored = sum(file.stat().st_size for file in big.glob("*.safetensors"))
    assert stored > 0.7e9 and peak - base <= MEMORY + ACTIVATIONS
    assert 0.7 * stored < counted < stored
    assert from_disk == 0 or 0.5 * counted <= from_disk <= 1.2 * counted  # 0 where the system does not count
