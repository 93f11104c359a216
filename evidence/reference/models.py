"""Models and texts that the cases use: both toys, and tiny random checkpoints of two families."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from evidence.reference.names import get

TOYS = ("toy-moe", "toy-dense")
TINY = {"tiny-qwen3_5_moe": ("qwen3_5_moe", "root"), "tiny-qwen3_next": ("qwen3_next", "flat")}
MODELS = (*TOYS, *TINY)


@cache
def opened(name: str) -> Any:
    """A checkpoint in float32."""
    if name in TOYS:
        return get("open")(name, device="cpu", dtype="float32")
    family, layout = TINY[name]
    folder = Path(tempfile.mkdtemp()) / name
    return get("open")(get("testing.tiny_checkpoint")(folder, family, layout=layout), device="cpu", dtype="float32")


def texts(domain: str, count: int) -> list[str]:
    """Shipped texts of a domain."""
    return list(get("tasks.texts")(domain)[:count])


def sequences(name: str, *lengths: int) -> list[torch.Tensor]:
    """Token ids of texts of several domains, cut to these lengths."""
    domains = ("code", "prose", "recall", "arithmetic")
    tokenizer = opened(name).tokenizer
    return [
        torch.tensor(tokenizer(texts(domains[i % 4], 8)[i // 4])["input_ids"][:length])
        for i, length in enumerate(lengths)
    ]


def padded(rows: list[torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    """Rows of token ids as one batch with its attention mask, padded on the left or right."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        columns = slice(width - len(row), None) if side == "left" else slice(len(row))
        ids[number, columns], mask[number, columns] = row, 1
    return {"input_ids": ids, "attention_mask": mask}
