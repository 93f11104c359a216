"""FLOPs and bytes of one forward pass by part, and the bytes of its caches, computed from a config.

The FLOPs are
  - 2 per multiply-add of every matrix product; causal attention counts only the lower triangle;
  - n * n * k per triangular solve of n rows and k columns (Golub & Van Loan, Matrix Computations, 3.1);
  - those of the chunked delta rule with chunks of 64 tokens, the last one padded (Yang et al. 2024, arXiv:2406.06484,
    2412.06464);
  - the element-wise work of the recurrent delta rule on its state, which is all its work. Other element-wise work is
    not counted: norms, activations, gates, softmax, rotary positions.
Bytes are the minimum that a pass can move: it reads each weight and each cached value once, and writes each new value
once. Activations are not counted, because they depend on how kernels are fused; nor are the vision tower and MTP head.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from qwenlab.checkpoint.anatomy.tensors import Tensor, tensors
from qwenlab.checkpoint.config import TextConfig
from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.checkpoint.mixers.gated_deltanet import CHUNK
from qwenlab.errors import BadArgument, UnknownQuantization

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}

# The matrices outside the mixers that FP8 releases store in 16 bits.
_NOT_FP8 = ("gate", "shared_expert_gate")
_OUTSIDE = ("vision", "mtp")


@dataclass(frozen=True, slots=True)
class CostedPass:
    """One forward pass: in each of `batch` sequences, `new` tokens after `past` cached ones."""

    new: int
    past: int = 0
    batch: int = 1

    @property
    def tokens(self) -> int:
        """Number of tokens that the pass computes."""
        return self.batch * self.new

    @property
    def pairs(self) -> int:
        """Number of query-key pairs that causal attention scores."""
        return self.batch * (self.new * self.past + self.new * (self.new + 1) // 2)


@dataclass(frozen=True, slots=True)
class Cost:
    """The FLOPs or bytes of one forward pass, by part and purpose."""

    unit: str  # "FLOP" or "B"
    tokens: int  # computed by the pass, over the batch
    terms: Mapping[tuple[str, str], float]  # (part, purpose) -> amount

    @property
    def parts(self) -> dict[str, float]:
        """Amount by part."""
        parts: dict[str, float] = defaultdict(float)
        for (part, _), amount in self.terms.items():
            parts[part] += amount
        return dict(parts)

    @property
    def total(self) -> float:
        """Total amount of the pass."""
        return sum(self.terms.values())

    @property
    def per_token(self) -> dict[str, float]:
        """Amount by part, per token that the pass computes."""
        return {part: amount / self.tokens for part, amount in self.parts.items()}


def flops(config: TextConfig, step: CostedPass, *, rule: str, logits: str = "all") -> Cost:
    """FLOPs of one pass; `rule` and `logits` as in `Anatomy.flops`."""
    terms: dict[tuple[str, str], float] = defaultdict(float)
    head, deltanet = config.vocab_size * config.hidden_size, config.family.deltanet
    terms["lm_head", "projections"] = 2 * head * (step.tokens if logits == "all" else step.batch)
    for tensor in tensors(config):
        if tensor.layer is None or len(tensor.shape) < 2:
            continue
        use = "convolution" if tensor.module == deltanet.convolution else "projections"
        terms[tensor.part, use] += 2 * active_size(tensor, config) * step.tokens
    for kind in config.layer_types:
        if kind == ATTENTION:
            terms[kind, "scores"] += config.family.attention.score_flops(config) * step.pairs
        elif rule == "chunk":
            products, solves = deltanet.chunk_flops(config)
            terms[kind, "rule"] += products * ceil(step.new / CHUNK) * step.batch
            terms[kind, "solves"] += solves * ceil(step.new / CHUNK) * step.batch
        else:
            terms[kind, "rule"] += deltanet.recurrent_flops(config) * step.tokens
    return Cost("FLOP", step.tokens, dict(terms))


def bytes_moved(config: TextConfig, step: CostedPass, *, dtype: str | None = None) -> Cost:
    """Minimum number of bytes that one pass reads or writes; `dtype` replaces that of weights and KV cache.

    The experts count as if each token chose uniformly at random. Real routing is more concentrated, so this is the most
    expensive case.
    """
    terms: dict[tuple[str, str], float] = defaultdict(float)
    terms["embedding", "rows"] = step.tokens * config.hidden_size * item_bytes(dtype or config.dtype)
    touched = 1 - (1 - config.num_experts_per_tok / config.num_experts) ** step.tokens if config.num_experts else 0.0
    for tensor in tensors(config):
        if tensor.part in _OUTSIDE or (tensor.part == "embedding" and not config.tie_word_embeddings):
            continue
        part = "lm_head" if tensor.part == "embedding" else tensor.part
        terms[part, "weights"] += stored_bytes(tensor, config, dtype) * (touched if part == "experts" else 1)
    token = step.batch * config.layer_types.count(ATTENTION) * kv_bytes(config, 1, dtype)
    terms[ATTENTION, "cache read"] = token * step.past
    terms[ATTENTION, "cache written"] = token * step.new
    state = step.batch * (recurrent_bytes(config) + convolution_bytes(config, dtype))
    terms[DELTANET, "state read"] = state if step.past else 0
    terms[DELTANET, "state written"] = state
    return Cost("B", step.tokens, dict(terms))


def active_size(tensor: Tensor, config: TextConfig) -> int:
    """Elements of a tensor that one token uses: all of them, or those of the chosen experts."""
    return tensor.size // config.num_experts * config.num_experts_per_tok if tensor.part == "experts" else tensor.size


def stored_bytes(tensor: Tensor, config: TextConfig, dtype: str | None = None) -> int:
    """Bytes of one tensor in the checkpoint's files, or in memory as `dtype`.

    FP8 releases store the large matrices of each layer with one byte per element and a 16-bit scale per block, and the
    rest in 16 bits. A few files store `A_log` and the DeltaNet norm in float32; these count at the config's dtype.
    """
    if dtype is not None or config.quantization is None:
        return tensor.size * item_bytes(dtype or config.dtype)
    if config.quantization != "fp8" or config.weight_block is None:
        raise UnknownQuantization(
            f"The weights of {config.name} are stored as {config.quantization!r}; qwenlab cannot count its bytes.\n"
            "Pass the dtype that the weights will have in memory, such as dtype='bfloat16'."
        )
    in_layer = tensor.layer is not None or ".layers." in tensor.name
    if not in_layer or len(tensor.shape) < 2 or tensor.module in {*_NOT_FP8, *config.family.deltanet.not_fp8}:
        return tensor.size * item_bytes(config.dtype)
    *experts, rows, columns = tensor.shape
    scales = ceil(rows / config.weight_block[0]) * ceil(columns / config.weight_block[1])
    return tensor.size + 2 * scales * (experts[0] if experts else 1)


def kv_bytes(config: TextConfig, context: int, dtype: str | None = None) -> int:
    """Bytes of the keys and values of one attention layer, for `context` tokens of one sequence."""
    return config.family.attention.cache_elements(config) * context * item_bytes(dtype or config.dtype)


def recurrent_bytes(config: TextConfig) -> int:
    """Bytes of the DeltaNet states of one sequence: float32 for every model dtype, as in every kernel."""
    return config.layer_types.count(DELTANET) * config.family.deltanet.state_elements(config) * ITEM_BYTES["float32"]


def convolution_bytes(config: TextConfig, dtype: str | None = None) -> int:
    """Bytes of the convolution states of one sequence: the last inputs, one column per tap of the kernel."""
    columns = config.family.deltanet.convolution_elements(config)
    return config.layer_types.count(DELTANET) * columns * item_bytes(dtype or config.dtype)


def item_bytes(dtype: str | object) -> int:
    """Bytes of one element; `dtype` is a name such as "bfloat16", or a torch dtype."""
    name = str(dtype).removeprefix("torch.")
    if name not in ITEM_BYTES:
        raise BadArgument(f"dtype {name!r} is unknown.\nUse one of {', '.join(ITEM_BYTES)}.")
    return ITEM_BYTES[name]
