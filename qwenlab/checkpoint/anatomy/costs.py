"""FLOPs done and bytes moved by one forward pass of a config, part by part, and the bytes its caches hold.

What is counted
  - 2 FLOPs a multiply-add of every matrix product, causal attention over its lower triangle only;
  - n * n * k FLOPs a triangular solve of n rows and k columns (Golub & Van Loan, Matrix Computations, 3.1);
  - the chunked delta rule at chunks of 64 tokens, the last one padded (Yang et al. 2024, arXiv:2406.06484, 2412.06464);
  - the element-wise work of the recurrent delta rule on its state, since that is all it does. No other element-wise
    work is counted: norms, activations, gates, softmax, rotary positions.
Bytes are the least a pass can move: each weight it needs once, what is in a cache read once, what is new written once.
Activations are left out, for they depend on how kernels are fused. So are the vision tower and the MTP head.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from qwenlab.checkpoint.anatomy.tensors import Tensor, tensors
from qwenlab.checkpoint.config import TextConfig
from qwenlab.checkpoint.families import ATTENTION, DELTANET
from qwenlab.errors import BadArgument, UnknownQuantization

CHUNK = 64
"""Tokens a chunk of the delta rule: the default of transformers' and flash-linear-attention's chunk kernels."""

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}

# The matrices of a layer that FP8 releases keep in 16 bits; the rest of its matrices are stored as FP8.
_NOT_FP8 = ("conv1d", "in_proj_a", "in_proj_b", "in_proj_ba", "gate", "shared_expert_gate")
_OUTSIDE = ("vision", "mtp")


@dataclass(frozen=True, slots=True)
class CostedPass:
    """One forward pass: in each of `batch` sequences, `new` tokens after `past` cached ones."""

    new: int
    past: int = 0
    batch: int = 1

    @property
    def tokens(self) -> int:
        """Tokens this pass computes."""
        return self.batch * self.new

    @property
    def pairs(self) -> int:
        """Query-key pairs that causal attention scores."""
        return self.batch * (self.new * self.past + self.new * (self.new + 1) // 2)


@dataclass(frozen=True, slots=True)
class Cost:
    """The FLOPs or bytes of one forward pass, by part and by what they are spent on."""

    unit: str  # "FLOP" or "B"
    tokens: int  # computed by the pass, over the batch
    terms: Mapping[tuple[str, str], float]  # (part, what for) -> amount

    @property
    def parts(self) -> dict[str, float]:
        """Amount by part."""
        parts: dict[str, float] = defaultdict(float)
        for (part, _), amount in self.terms.items():
            parts[part] += amount
        return dict(parts)

    @property
    def total(self) -> float:
        """Amount of the whole pass."""
        return sum(self.terms.values())

    @property
    def per_token(self) -> dict[str, float]:
        """Amount by part, divided by the tokens the pass computes."""
        return {part: amount / self.tokens for part, amount in self.parts.items()}


def flops(config: TextConfig, step: CostedPass, *, rule: str, logits: str = "all") -> Cost:
    """FLOPs of one pass.

    rule    "chunk" or "recurrent": the form of the delta rule
    logits  "all" applies the lm_head to every token, "last" to the last of each sequence
    """
    terms: dict[tuple[str, str], float] = defaultdict(float)
    head = config.vocab_size * config.hidden_size
    terms["lm_head", "projections"] = 2 * head * (step.tokens if logits == "all" else step.batch)
    for tensor in tensors(config):
        if tensor.layer is None or len(tensor.shape) < 2:
            continue
        use = "convolution" if tensor.module == "conv1d" else "projections"
        terms[tensor.part, use] += 2 * active_size(tensor, config) * step.tokens
    for kind in config.layer_types:
        if kind == ATTENTION:
            terms[kind, "scores"] += 2 * 2 * config.num_attention_heads * config.head_dim * step.pairs
        elif rule == "chunk":
            terms[kind, "rule"] += _chunk_products(config) * ceil(step.new / CHUNK) * step.batch
            terms[kind, "solves"] += _chunk_solves(config) * ceil(step.new / CHUNK) * step.batch
        else:
            terms[kind, "rule"] += _recurrent_step(config) * step.tokens
    return Cost("FLOP", step.tokens, dict(terms))


def _chunk_products(config: TextConfig) -> int:
    """Matrix products of a chunk, over all value heads: beta K K^T, Q K^T, its use on V, and three with the state."""
    key, value = config.linear_key_head_dim, config.linear_value_head_dim
    within = 2 * CHUNK * CHUNK * (key + key + value)
    with_state = 3 * 2 * CHUNK * key * value
    return config.linear_num_value_heads * (within + with_state)


def _chunk_solves(config: TextConfig) -> int:
    """The two triangular solves of a chunk, over all value heads: for the new values and for the decayed keys."""
    return config.linear_num_value_heads * CHUNK * CHUNK * (config.linear_value_head_dim + config.linear_key_head_dim)


def _recurrent_step(config: TextConfig) -> int:
    """One token, over all value heads: decay S (1 an element), S^T k (2), S += k delta^T (2), S^T q (2)."""
    return 7 * _state_elements(config)


def bytes_moved(config: TextConfig, step: CostedPass, *, dtype: str | None = None) -> Cost:
    """Bytes that one pass reads or writes, at the least.

    Of the experts, those that `step.tokens` tokens touch on average if each chooses at random: real routing is more
    concentrated, so this is the dearest case. `dtype` replaces the dtype that weights and KV cache are stored in.
    """
    terms: dict[tuple[str, str], float] = defaultdict(float)
    terms["embedding", "rows"] = step.tokens * config.hidden_size * item_bytes(dtype or config.dtype)
    touched = _experts_touched(config, step.tokens)
    for tensor in tensors(config):
        if tensor.part in _OUTSIDE or (tensor.part == "embedding" and not config.tie_word_embeddings):
            continue
        part = "lm_head" if tensor.part == "embedding" else tensor.part
        terms[part, "weights"] += stored_bytes(tensor, config, dtype) * (touched if part == "experts" else 1)
    token = step.batch * kv_bytes(config, 1, dtype)
    terms[ATTENTION, "cache read"] = token * step.past
    terms[ATTENTION, "cache written"] = token * step.new
    state = step.batch * (recurrent_bytes(config) + convolution_bytes(config, dtype))
    terms[DELTANET, "state read"] = state if step.past else 0
    terms[DELTANET, "state written"] = state
    return Cost("B", step.tokens, dict(terms))


def _experts_touched(config: TextConfig, tokens: int) -> float:
    """Mean share of the experts that `tokens` tokens touch, each choosing its distinct ones uniformly at random."""
    if not config.num_experts:
        return 0.0
    return 1 - (1 - config.num_experts_per_tok / config.num_experts) ** tokens


def active_size(tensor: Tensor, config: TextConfig) -> int:
    """Elements of a tensor that one token uses: all, but of the experts only the chosen ones."""
    return tensor.size // config.num_experts * config.num_experts_per_tok if tensor.part == "experts" else tensor.size


def stored_bytes(tensor: Tensor, config: TextConfig, dtype: str | None = None) -> int:
    """Bytes of one tensor in the checkpoint's files, or in memory as `dtype`.

    FP8 releases store the large matrices of each layer in one byte an element and a 16-bit scale for every block, the
    rest in 16 bits. A few files keep `A_log` and the DeltaNet norm in float32; they are counted at the config's dtype.
    """
    if dtype is not None or config.quantization is None:
        return tensor.size * item_bytes(dtype or config.dtype)
    if config.quantization != "fp8" or config.weight_block is None:
        raise UnknownQuantization(
            f"the weights of {config.name} are stored as {config.quantization!r}, whose bytes we cannot count.\n"
            "Name the dtype they will have in memory, say dtype='bfloat16'."
        )
    in_layer = tensor.layer is not None or ".layers." in tensor.name
    if not in_layer or len(tensor.shape) < 2 or tensor.module in _NOT_FP8:
        return tensor.size * item_bytes(config.dtype)
    *experts, rows, columns = tensor.shape
    scales = ceil(rows / config.weight_block[0]) * ceil(columns / config.weight_block[1])
    return tensor.size + 2 * scales * (experts[0] if experts else 1)


def kv_bytes(config: TextConfig, context: int, dtype: str | None = None) -> int:
    """Keys and values of all full-attention layers for `context` tokens of one sequence."""
    return config.layer_types.count(ATTENTION) * _layer_kv_bytes(config, context, dtype)


def mtp_kv_bytes(config: TextConfig, context: int, dtype: str | None = None) -> int:
    """Keys and values of the MTP head's own layers for `context` tokens of one sequence."""
    return config.mtp_num_hidden_layers * _layer_kv_bytes(config, context, dtype)


def _layer_kv_bytes(config: TextConfig, context: int, dtype: str | None) -> int:
    return 2 * config.num_key_value_heads * config.head_dim * context * item_bytes(dtype or config.dtype)


def recurrent_bytes(config: TextConfig) -> int:
    """The DeltaNet states of one sequence: float32 whatever the model's dtype, as every kernel keeps them."""
    return config.layer_types.count(DELTANET) * _state_elements(config) * ITEM_BYTES["float32"]


def convolution_bytes(config: TextConfig, dtype: str | None = None) -> int:
    """The inputs of the short convolutions that are kept of one sequence, as many columns as the kernel is long."""
    columns = config.conv_dim * config.linear_conv_kernel_dim
    return config.layer_types.count(DELTANET) * columns * item_bytes(dtype or config.dtype)


def _state_elements(config: TextConfig) -> int:
    """Elements of one layer's recurrent state: a key by value matrix for each value head."""
    return config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim


def item_bytes(dtype: str | object) -> int:
    """Bytes of one element; `dtype` is a name such as "bfloat16", or a torch dtype."""
    name = str(dtype).removeprefix("torch.")
    if name not in ITEM_BYTES:
        raise BadArgument(f"dtype {name!r} is not known.\nUse one of {', '.join(ITEM_BYTES)}.")
    return ITEM_BYTES[name]
