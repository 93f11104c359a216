"""List the tensors of a checkpoint from its config: name in the files, shape, and part of the model."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from qwenlab.checkpoint.config import TextConfig, VisionConfig
from qwenlab.checkpoint.families import ATTENTION, KINDS

PARTS = ("embedding", *KINDS, "router", "experts", "shared_expert", "mlp", "norms", "lm_head", "vision", "mtp")
"""The parts of a checkpoint. Norms inside a mixer belong to the mixer, the shared expert's gate to the expert."""

LAYER_PARTS = (*KINDS, "router", "experts", "shared_expert", "mlp", "norms")
"""The parts inside the layers of the target model."""


class Tensor(NamedTuple):
    """One tensor of a checkpoint; the experts of a layer are one tensor [expert, row, column]."""

    name: str
    shape: tuple[int, ...]
    part: str
    layer: int | None = None  # of the target model; None outside its layers

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def module(self) -> str:
        """The last part of the name: `in_proj_qkv`, `gate`, `A_log`."""
        return self.name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]


def tensors(config: TextConfig) -> Iterator[Tensor]:
    """Yield the tensors of a checkpoint, in the order of the stack.

    A tied lm_head has no tensor of its own. Shapes are those of transformers (tests compare them with its models on the
    meta device); those of the MTP head, which transformers does not load, are those of the published files.
    """
    family = config.family
    prefix = family.root_prefix if config.is_root else family.text_prefix
    size = config.hidden_size
    yield Tensor(f"{prefix}embed_tokens.weight", (config.vocab_size, size), "embedding")
    for layer, (kind, sparse) in enumerate(zip(config.layer_types, config.sparse_layers, strict=True)):
        for name, shape, part in _decoder_layer(config, kind, sparse):
            yield Tensor(f"{prefix}layers.{layer}.{name}", shape, part, layer)
    yield Tensor(f"{prefix}norm.weight", (size,), "norms")
    if not config.tie_word_embeddings:
        yield Tensor(f"{family.head}.weight", (config.vocab_size, size), "lm_head")
    if config.vision is not None:
        yield from (Tensor(family.vision_prefix + name, shape, "vision") for name, shape in _vision(config.vision))
    if config.mtp_num_hidden_layers:
        yield from (Tensor(f"{family.mtp_prefix}{name}", shape, "mtp") for name, shape in _mtp(config))


def _decoder_layer(config: TextConfig, kind: str, sparse: bool) -> Iterator[tuple[str, tuple[int, ...], str]]:
    family, size = config.family, config.hidden_size
    mixer = family.kind(kind)
    for name, shape in mixer.tensors(config):
        yield f"{mixer.path}.{name}", shape, kind
    if sparse:
        yield from _sparse_mlp(config)
    else:
        yield from _gated_mlp(family.mlp, size, config.intermediate_size, "mlp")
    yield from ((f"{norm}.weight", (size,), "norms") for norm in mixer.norms)


def _gated_mlp(path: str, size: int, width: int, part: str) -> Iterator[tuple[str, tuple[int, ...], str]]:
    yield f"{path}.gate_proj.weight", (width, size), part
    yield f"{path}.up_proj.weight", (width, size), part
    yield f"{path}.down_proj.weight", (size, width), part


def _sparse_mlp(config: TextConfig) -> Iterator[tuple[str, tuple[int, ...], str]]:
    family, size, experts, width = config.family, config.hidden_size, config.num_experts, config.moe_intermediate_size
    yield f"{family.router}.weight", (experts, size), "router"
    yield f"{family.experts}.gate_up_proj", (experts, 2 * width, size), "experts"
    yield f"{family.experts}.down_proj", (experts, size, width), "experts"
    yield from _gated_mlp(family.shared_expert, size, config.shared_expert_intermediate_size, "shared_expert")
    yield f"{family.shared_expert_gate}.weight", (1, size), "shared_expert"


def _mtp(config: TextConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Source: headers of the published files, as read by vLLM's `qwen3_5_mtp.py` and `qwen3_next_mtp.py`."""
    size = config.hidden_size
    yield "fc.weight", (size, 2 * size)
    for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
        yield f"{name}.weight", (size,)
    for layer in range(config.mtp_num_hidden_layers):
        for name, shape, _ in _decoder_layer(config, ATTENTION, config.num_experts > 0):
            yield f"layers.{layer}.{name}", shape


def _vision(vision: VisionConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    size, width = vision.hidden_size, vision.intermediate_size
    merged = size * vision.spatial_merge_size**2
    patch = (vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    yield from _biased("patch_embed.proj", size, vision.in_channels, *patch)
    yield "pos_embed.weight", (vision.num_position_embeddings, size)
    for block in range(vision.depth):
        yield from _biased(f"blocks.{block}.attn.qkv", 3 * size, size)
        yield from _biased(f"blocks.{block}.attn.proj", size, size)
        yield from _biased(f"blocks.{block}.mlp.linear_fc1", width, size)
        yield from _biased(f"blocks.{block}.mlp.linear_fc2", size, width)
        yield from _biased(f"blocks.{block}.norm1", size)
        yield from _biased(f"blocks.{block}.norm2", size)
    yield from _biased("merger.linear_fc1", merged, merged)
    yield from _biased("merger.linear_fc2", vision.out_hidden_size, merged)
    yield from _biased("merger.norm", size)


def _biased(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
