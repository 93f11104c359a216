"""`python -m benchmarks.streaming`: running checkpoints from the disk, against its speed and the processor's.

By default the sizes are those of Qwen3.6, in as many layers as the free disk allows. `--geometry tiny --layers 4` takes
260 MB, which opening reads whole to hash them, as it does for any checkpoint of up to 1 GiB. Checkpoints with random
weights are written to --scratch, and deleted afterwards. AirLLM is measured where it is installed (`pip install airllm
sentencepiece`).
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import CalledProcessError
from typing import Annotated, Any, NamedTuple

import psutil
import torch
import typer
from rich.console import Console
from rich.table import Table

import qwenlab as ql
from benchmarks.__main__ import machine, results_file
from benchmarks.cold_files import drop, sequential_speed
from benchmarks.watched_process import run_watched
from qwenlab.checkpoint.weights.shards import read_weights

console = Console(width=120)
GIB = 2**30
MEANING = """\
read: bytes that the process caused to be read from disks (read_bytes in /proc/self/io), its files cold at the start.
a pass: bytes of the layers and the lm_head. files: bytes of all shards.
waiting: seconds in which the main thread neither computed nor queued for a processor. reading: bytes of a pass over the
speed of one sequential read of the same cold files, the median of three.
overlapped: the larger of computing and reading, after the time to read the first layer. Computing is the time of the
same run with all weights in memory, or, where they do not fit, the time of the main thread on the processor.
peak: RssAnon + RssFile, sampled every 10 ms from another process.
accelerate (disk offload) and AirLLM run one batch without probes; neither time of copying the files counts."""


class Part(NamedTuple):
    """What is run by default, and the smallest and largest value of each measure."""

    ways: Sequence[str]
    geometries: Sequence[str]
    layers: int | None  # None: as many as the disk can hold
    texts: int
    tokens: int
    limits: dict[str, tuple[float, float]]


PEERS = ("accelerate", "AirLLM")
LARGE = ("Qwen3.6-27B", "Qwen3.6-35B-A3B")
PEAK = {"peak, GiB": (0, 8)}
PARTS = {
    "one-text": Part(
        *(("streamed",), LARGE[:1], None, 1, 32),
        {"read / a pass": (0.99, 1.01), "waiting / reading": (0, 1.3)} | PEAK,
    ),
    "texts": Part(
        *(("streamed", "in memory", *PEERS), LARGE, 8, 8, 256),
        {"read / files": (0, 1.05), "seconds / overlapped": (0, 1.15)} | PEAK,
    ),
    "sweep": Part(("sweep",), LARGE[:1], 8, 2, 64, {"read / files": (0, 1.1)} | PEAK),
}


def main(
    parts: Annotated[list[str] | None, typer.Option("--part", help=", ".join(PARTS))] = None,
    geometry: Annotated[str | None, typer.Option(help="tiny, or what qwenlab make-checkpoint takes")] = None,
    layers: int | None = None,
    texts: int | None = None,
    tokens: int | None = None,
    memory: Annotated[str, typer.Option(help="budget for weights; empty: open the checkpoint whole")] = "6GiB",
    scratch: Annotated[Path | None, typer.Option(help="folder on the disk to be measured")] = None,
    out: Path = Path("benchmarks/results"),
) -> None:
    """Measure bytes read, time and memory of the chosen parts, each run in a process of its own."""
    torch.set_num_threads(1)
    if unknown := set(parts or ()) - PARTS.keys():
        raise typer.BadParameter(f"{', '.join(unknown)}: the parts are {', '.join(PARTS)}")
    file, asked = results_file(out, "streaming-"), dict(layers=layers, texts=texts, tokens=tokens)
    results: dict[str, Any] = {"machine": machine(), "meaning": MEANING, "memory": memory, "parts": {}}
    for name in parts or PARTS:
        part = PARTS[name]._replace(**{key: value for key, value in asked.items() if value is not None})
        for each in [geometry] if geometry else part.geometries:
            with checkpoint_folder(each, part.layers, scratch) as folder:
                found = measured(part, folder, memory)
            results["parts"].setdefault(name, {})[each] = found
            show(f"{name}, {each}", found)
            file.write_text(json.dumps(results, indent=1) + "\n")  # after each run, in case of interruption
    print(MEANING)
    console.print(f"written to {file}")


@contextmanager
def checkpoint_folder(geometry: str, layers: int | None, scratch: Path | None) -> Iterator[Path]:
    """Context manager that yields a checkpoint with random weights, deleted at the end."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        source = tiny_geometry(Path(folder)) if geometry == "tiny" else geometry
        dense = not any(ql.anatomy(str(source)).config.sparse_layers)
        kept = layers or deepest(str(source), shutil.disk_usage(folder).free)
        # AirLLM, which is measured on dense models, needs the vision tower.
        yield ql.recipes.make_checkpoint(
            source, random=True, layers=kept, vision=dense, out=Path(folder) / f"{kept}-layers"
        ).folder


def tiny_geometry(folder: Path) -> Path:
    """The path of a config.json with the layers of Qwen3.5-0.8B and a small vocabulary."""
    raw = json.loads(ql.checkpoint.catalogue()["Qwen3.5-0.8B"].read_text())
    raw["text_config"]["vocab_size"] = 4096
    raw["vision_config"]["depth"] = 1
    (folder / "config.json").write_text(json.dumps(raw))
    return folder / "config.json"


def deepest(geometry: str, free: int, reserve: int = 4 * GIB) -> int:
    """The largest multiple of 4 layers that leaves `reserve` bytes of the disk free."""
    anatomy = ql.anatomy(geometry)
    sizes = [0] * len(anatomy.layer_types)
    for tensor in anatomy.tensors:
        if tensor.layer is not None:
            sizes[tensor.layer] += 2 * tensor.size
    room = free - reserve - (2 * anatomy.total - sum(sizes))
    fits = [count for count in range(4, len(sizes) + 1, 4) if sum(sizes[:count]) <= room]
    if not fits:
        raise typer.BadParameter(f"the disk has {free:,} bytes free: choose another --scratch, or --geometry tiny")
    return fits[-1]


def measured(part: Part, folder: Path, memory: str) -> dict[str, Any]:
    """What each way measured, and the ratios with their limits."""
    files = read_weights(folder).shards
    sizes = {"files": sum(file.stat().st_size for file in files)} | pass_bytes(folder)
    speeds = sorted(sequential_speed(files) for _ in range(3))
    ways = {}
    for way in part.ways:
        if not can_run(way, folder, sizes["files"]):
            continue
        drop(files)
        command = ("-m", "benchmarks.streamed", way, str(folder), memory, str(part.texts), str(part.tokens))
        try:
            ways[way] = run_watched([sys.executable, *command])
        except CalledProcessError as error:
            if way not in PEERS:
                raise
            console.print(f"{way} is not measured: {error}")
    found = {"layers": len(ql.anatomy(str(folder)).layer_types), "texts": part.texts, "tokens": part.tokens}
    found |= {"bytes": sizes, "bytes per second": speeds, "ways": ways}
    ratios = compared(found, ways[part.ways[0]])
    return found | {"ratios": {name: {"value": ratios[name], "limits": given} for name, given in part.limits.items()}}


def pass_bytes(source: str | Path) -> dict[str, int]:
    """Bytes of the tensors that a pass reads whole, and of the first layer."""
    anatomy = ql.anatomy(str(source))
    outside = ["lm_head"] if anatomy.parameters["lm_head"] else ["embedding"]
    read = [tensor for tensor in anatomy.tensors if tensor.layer is not None or tensor.part in (*outside, "norms")]
    return {
        "a pass": 2 * sum(tensor.size for tensor in read),
        "first layer": 2 * sum(tensor.size for tensor in read if tensor.layer == 0),
    }


def can_run(way: str, folder: Path, files: int) -> bool:
    """Whether a way can be measured here: with enough memory, an installed package and a model that it knows."""
    if way == "in memory":
        return bool(psutil.virtual_memory().available > 1.2 * files + 2 * GIB)
    dense = not any(ql.anatomy(str(folder)).config.sparse_layers)
    return way not in PEERS or (dense and importlib.util.find_spec(way.lower()) is not None)


def compared(found: dict[str, Any], run: dict[str, Any]) -> dict[str, float]:
    """The ratios of one run to the bytes of the files, the speed of the disk, and the time of computing."""
    sizes, speed = found["bytes"], found["bytes per second"][1]
    reading = sizes["a pass"] / speed
    computing = found["ways"].get("in memory", {}).get("seconds", run["seconds computing"])
    return {
        "read / a pass": run["bytes read, running"] / sizes["a pass"],
        "read / files": (run["bytes read, opening"] + run["bytes read, running"]) / sizes["files"],
        "waiting / reading": run["seconds waiting"] / reading,
        "seconds / overlapped": run["seconds"] / (sizes["first layer"] / speed + max(computing, reading)),
        "peak, GiB": run["peak bytes"] / GIB,
    }


def show(name: str, found: dict[str, Any]) -> None:
    """Print what each way measured, and the ratios with their limits."""
    title = f"{name}: {found['layers']} layers, {found['texts']} texts of {found['tokens']} tokens"
    columns = ("way", "read, opening", "read, running", "seconds, opening", "running", "waiting", "peak")
    table = Table(*columns, title=title, title_justify="left")
    for way, run in found["ways"].items():
        read = (f"{run[f'bytes read, {when}'] / 1e9:.2f} GB" for when in ("opening", "running"))
        seconds = (f"{run[key]:.1f}" for key in ("seconds, opening", "seconds", "seconds waiting"))
        table.add_row(way, *read, *seconds, f"{run['peak bytes'] / GIB:.2f} GiB")
    console.print(table)
    for ratio, given in found["ratios"].items():
        low, high = given["limits"]
        status = "within" if low <= given["value"] <= high else "BEYOND"
        console.print(f"{ratio}: {given['value']:.3f}, {status} the {f'{low:g} to ' * bool(low)}{high:g} allowed")


if __name__ == "__main__":
    typer.run(main)
