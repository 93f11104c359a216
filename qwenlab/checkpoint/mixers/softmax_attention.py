"""The softmax-attention mixer: parts, values, tensors and costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qwenlab.checkpoint.mixers.base import BY_HEAD, BY_KEY_HEAD, MixerKind, MixerSite, Place


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxAttentionKind(MixerKind):
    """A softmax-attention mixer with grouped key heads, and norms of queries and keys.

    query, key, value  input projections
    gate               the rows of the query projection are, for each head, its query and then its output gate
    even               `head_dim` may be left out of a config: hidden_size / num_attention_heads
    norm_of_heads      whether q_norm and k_norm normalise each head alone; otherwise all of its heads together
    """

    path: str = "self_attn"
    output: str = "o_proj"
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    gate: bool = True
    even: bool = False
    norm_of_heads: bool = True

    def sites(self) -> tuple[MixerSite, ...]:
        gate = (MixerSite("mixer.gate", BY_HEAD, self.query, "logit"),) if self.gate else ()
        return (
            MixerSite("mixer.query", BY_HEAD),
            MixerSite("mixer.key", BY_KEY_HEAD),
            MixerSite("mixer.value", BY_KEY_HEAD),
            MixerSite("mixer.heads", BY_HEAD, self.output),
            *gate,
        )

    def place(self, word: str, config: Any) -> Place | None:
        heads, key_heads = self.head_counts(config)
        places = {
            "mixer.heads": Place(self.output, 0, shape=(heads, -1)),
            "mixer.value": Place(self.value, shape=(key_heads, -1)),
        }
        if self.gate:
            places["mixer.gate"] = Place(self.query, shape=(heads, 2, -1), index=1)
        return places.get(word)

    def head_counts(self, config: Any) -> tuple[int, int]:
        return config.num_attention_heads, config.num_key_value_heads

    def tensors(self, config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
        size, (heads, key_heads) = config.hidden_size, self.head_counts(config)
        queries, keys = heads * config.head_dim, key_heads * config.head_dim
        matrices = {self.query: ((1 + self.gate) * queries, size), self.key: (keys, size), self.value: (keys, size)}
        for name, (rows, columns) in (matrices | {self.output: (size, queries)}).items():
            yield f"{name}.weight", (rows, columns)
            if config.attention_bias:
                yield f"{name}.bias", (rows,)
        yield "q_norm.weight", (config.head_dim if self.norm_of_heads else queries,)
        yield "k_norm.weight", (config.head_dim if self.norm_of_heads else keys,)

    def cache_elements(self, config: Any) -> int:
        """Return the elements that one layer caches per token: a key and a value for each key head."""
        return 2 * self.head_counts(config)[1] * config.head_dim

    def score_flops(self, config: Any) -> int:
        """Return FLOPs per query and key, over all heads: the score, and the sum of values."""
        return 2 * 2 * self.head_counts(config)[0] * config.head_dim
