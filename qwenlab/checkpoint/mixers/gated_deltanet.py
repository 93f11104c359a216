"""The Gated DeltaNet mixer (Yang et al. 2024, arXiv:2412.06464): parts, values, tensors and costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from qwenlab.checkpoint.mixers.base import BY_HEAD, BY_KEY_HEAD, TOKEN, MixerKind, MixerSite, Place

CHUNK = 64
"""Tokens per chunk of the delta rule: the default of the kernels of transformers and flash-linear-attention."""

CONVOLUTIONS = {"causal_conv1d_fn": 1, "causal_conv1d_update": 2}
"""The convolutions of prefill and of decode steps that a layer calls, in every modeling file, and the index of the
weight among their arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDeltaNetKind(MixerKind):
    """A Gated DeltaNet mixer.

    inputs       input projections, and their rows: q, k, v, the output gate z, the write strength b (beta), the decay a
    convolution  short convolution of q, k and v
    stored_convolutions  names under which files may store the convolutions of q, k and v apart
    output_norm  norm of the heads' output; its argument 1 is the output gate
    doubled_by   config field that, where true, doubles beta: it is then up to 2, and the state can have negative
                 eigenvalues; "" where beta is always up to 1
    chunk_rule, recurrent_rule  the delta rules of prefill and of decode steps, in the globals of the modeling file
    """

    path: str = "linear_attn"
    output: str = "out_proj"
    inputs: tuple[tuple[str, str], ...] = (
        *(("in_proj_qkv", "qkv"), ("in_proj_z", "z"), ("in_proj_b", "b"), ("in_proj_a", "a")),
    )
    convolution: str = "conv1d"
    stored_convolutions: tuple[str, ...] = ()
    output_norm: str = "norm"
    doubled_by: str = ""
    chunk_rule: str = "torch_chunk_gated_delta_rule"
    recurrent_rule: str = "torch_recurrent_gated_delta_rule"

    def sites(self) -> tuple[MixerSite, ...]:
        gate = next(name for name, rows in self.inputs if "z" in rows)
        return (
            MixerSite("mixer.query", BY_KEY_HEAD),
            MixerSite("mixer.key", BY_KEY_HEAD),
            MixerSite("mixer.value", BY_HEAD),
            MixerSite("mixer.heads", BY_HEAD, self.output),
            MixerSite("mixer.gate", BY_HEAD, gate, "logit"),
            MixerSite("mixer.beta", (*TOKEN, "head")),
            MixerSite("mixer.decay", (*TOKEN, "head")),
        )

    def place(self, word: str, config: Any) -> Place | None:
        heads, _ = self.head_counts(config)
        if word == "mixer.heads":
            return Place(self.output, 0, shape=(heads, -1))
        return Place(self.output_norm, 1, rows=heads) if word == "mixer.gate" else None

    def head_counts(self, config: Any) -> tuple[int, int]:
        return config.linear_num_value_heads, config.linear_num_key_heads

    def state_shape(self, config: Any) -> tuple[int, int]:
        """Return the numbers of key channels and of channels of a head's state."""
        return config.linear_key_head_dim, config.linear_value_head_dim

    def largest_beta(self, config: Any) -> int:
        """Return the upper bound of the write strength beta, 1 or 2."""
        return 2 if self.doubled_by and getattr(config, self.doubled_by) else 1

    def tensors(self, config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
        heads, key_heads = self.head_counts(config)
        key, value = self.state_shape(config)
        rows = {"q": key_heads * key, "k": key_heads * key, "v": heads * value, "z": heads * value}
        rows |= {"a": heads, "b": heads}
        for name, letters in self.inputs:
            yield f"{name}.weight", (sum(rows[letter] for letter in letters), config.hidden_size)
        yield f"{self.convolution}.weight", (self._convolved(config), 1, config.linear_conv_kernel_dim)
        yield "A_log", (heads,)
        yield "dt_bias", (heads,)
        yield f"{self.output_norm}.weight", (value,)
        yield f"{self.output}.weight", (config.hidden_size, heads * value)

    def separate_convolutions(self, config: Any) -> dict[str, int]:
        """Return the channels of each convolution that files may store apart."""
        (heads, key_heads), (key, value) = self.head_counts(config), self.state_shape(config)
        return dict(zip(self.stored_convolutions, (key_heads * key, key_heads * key, heads * value), strict=False))

    @property
    def rules(self) -> tuple[str, str]:
        """The names by which a layer calls the delta rule, in prefill and in decode steps."""
        return self.chunk_rule, self.recurrent_rule

    @property
    def not_fp8(self) -> set[str]:
        """The parts that FP8 releases store in 16 bits: the convolution, and the projections of decay and beta."""
        return {self.convolution, *(name for name, rows in self.inputs if set(rows) <= {"a", "b"})}

    def state_elements(self, config: Any) -> int:
        """Return the elements of one layer's recurrent state: one key-by-value matrix per value head."""
        return self.head_counts(config)[0] * prod(self.state_shape(config))

    def convolution_elements(self, config: Any) -> int:
        """Return the elements of one layer's convolution state: the last inputs, one column per tap of the kernel."""
        return self._convolved(config) * config.linear_conv_kernel_dim

    def chunk_flops(self, config: Any) -> tuple[int, int]:
        """Return FLOPs per chunk, over all value heads, of the matrix products and of the triangular solves.

        The products are beta K K^T, Q K^T, (Q K^T) V and three with the state; the solves give new values and decayed
        keys.
        """
        (key, value), (heads, _) = self.state_shape(config), self.head_counts(config)
        within = 2 * CHUNK * CHUNK * (key + key + value)
        with_state = 3 * 2 * CHUNK * key * value
        return heads * (within + with_state), heads * CHUNK * CHUNK * (value + key)

    def recurrent_flops(self, config: Any) -> int:
        """Return FLOPs per token; by element of the state: decay S (1), S^T k (2), S += k delta^T (2), S^T q (2)."""
        return 7 * self.state_elements(config)

    def _convolved(self, config: Any) -> int:
        """Channels of the convolution: q, k and v."""
        (heads, key_heads), (key, value) = self.head_counts(config), self.state_shape(config)
        return 2 * key_heads * key + heads * value
