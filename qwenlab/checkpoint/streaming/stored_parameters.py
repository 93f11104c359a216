"""Find where the files of a checkpoint hold each parameter of the model."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from transformers import PreTrainedModel

from qwenlab.checkpoint.config import TextConfig
from qwenlab.checkpoint.streaming.file_tensor import FileTensor
from qwenlab.checkpoint.streaming.shard_file import Piece, ShardFile
from qwenlab.checkpoint.weights.layout import Shape, matrices
from qwenlab.checkpoint.weights.shards import Weights
from qwenlab.checkpoint.weights.target_model import stored_names
from qwenlab.errors import CannotStream

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def file_tensors(model: PreTrainedModel, weights: Weights, config: TextConfig) -> dict[str, FileTensor]:
    """Where the values of each parameter of a causal language model are, by the parameter's name.

    Raises CannotStream if the files contain an lm_head although the config ties it to the embedding.
    """
    head = f"{config.family.head}.weight"
    if config.tie_word_embeddings and head in weights.tensors:
        raise CannotStream(
            f"{weights.folder}: config.json ties the lm_head to the embedding, but the files contain both; memory=... "
            "does not compare them.\nOpen the checkpoint without memory=..., or correct tie_word_embeddings."
        )
    open_shard = cache(ShardFile)

    def piece(name: str) -> Piece:
        stored = weights.tensors[name]
        return Piece(open_shard(stored.shard), _DTYPES[stored.dtype], stored.start, stored.end)

    built = dict(model.named_parameters())  # some families fix the dtype of some parameters
    return {
        name: FileTensor(tuple(built[name].shape), built[name].dtype, tuple(map(piece, _names(stored, weights))))
        for name, stored in stored_names(weights, config).items()
    }


def _names(stored: dict[str, Shape], weights: Weights) -> Iterator[str]:
    """Names in the files; those of separate experts in the order in which the model stacks them."""
    for name, shape in stored.items():
        if name in weights.tensors:
            yield name
        else:
            yield from (part for part, _ in matrices(name, shape))
