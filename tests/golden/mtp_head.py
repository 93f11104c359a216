"""Slow reference of the MTP head: float64, one sequence, plain loops, easy to check by reading.

Tensors have the published names without `mtp.`; `config` is a transformers text config. Sources: vLLM `qwen3_5_mtp.py`
for the wiring, transformers' decoder layer for gated attention and the block of experts.
"""

import numpy as np


def mtp_head(weights, config, embedding, tokens, hidden, positions):
    """y [pair, channel] of pairs (token x[p+1], hidden h[p]) at the given rotary positions."""
    w = {name: np.asarray(tensor, dtype=np.float64) for name, tensor in weights.items()}
    eps = config.rms_norm_eps
    e = np.stack([norm(embedding[token], w["pre_fc_norm_embedding.weight"], eps) for token in tokens])
    h = np.stack([norm(row, w["pre_fc_norm_hidden.weight"], eps) for row in hidden])
    u = np.concatenate([e, h], axis=-1) @ w["fc.weight"].T
    layer = {name.removeprefix("layers.0."): tensor for name, tensor in w.items() if name.startswith("layers.0.")}
    s = decoder_layer(layer, config, u, positions)
    return np.stack([norm(row, w["norm.weight"], eps) for row in s])


def decoder_layer(w, config, x, positions):
    eps = config.rms_norm_eps
    a = attention(w, config, np.stack([norm(row, w["input_layernorm.weight"], eps) for row in x]), positions)
    x = x + a
    inner = [norm(row, w["post_attention_layernorm.weight"], eps) for row in x]
    mlp = experts if "mlp.gate.weight" in w else dense
    return x + np.stack([mlp(w, config, row) for row in inner])


def attention(w, config, x, positions):
    """Causal attention with a sigmoid output gate per channel; in q_proj, each head has query rows, then gate rows."""
    size, eps = config.head_dim, config.rms_norm_eps
    shared = config.num_attention_heads // config.num_key_value_heads
    out = np.zeros((len(x), config.num_attention_heads * size))
    for head in range(config.num_attention_heads):
        rows = w["self_attn.q_proj.weight"][head * 2 * size : (head + 1) * 2 * size]
        keys = w["self_attn.k_proj.weight"][head // shared * size : (head // shared + 1) * size]
        values = w["self_attn.v_proj.weight"][head // shared * size : (head // shared + 1) * size]
        q = [norm(rows[:size] @ token, w["self_attn.q_norm.weight"], eps) for token in x]
        k = [norm(keys @ token, w["self_attn.k_norm.weight"], eps) for token in x]
        q = [rotate(vector, position, config) for vector, position in zip(q, positions, strict=True)]
        k = [rotate(vector, position, config) for vector, position in zip(k, positions, strict=True)]
        for query in range(len(x)):
            scores = np.array([q[query] @ k[key] / np.sqrt(size) for key in range(query + 1)])
            share = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            read = sum(share[key] * (values @ x[key]) for key in range(query + 1))
            out[query, head * size : (head + 1) * size] = read * sigmoid(rows[size:] @ x[query])
    return out @ w["self_attn.o_proj.weight"].T


def rotate(vector, position, config):
    """Rotary position on the first channels: rotates channels i and i + half by position * theta^(-i / half)."""
    rope = config.rope_parameters
    half = int(config.head_dim * rope["partial_rotary_factor"]) // 2
    turned = vector.copy()
    for i in range(half):
        angle = position * rope["rope_theta"] ** (-i / half)
        turned[i] = vector[i] * np.cos(angle) - vector[i + half] * np.sin(angle)
        turned[i + half] = vector[i + half] * np.cos(angle) + vector[i] * np.sin(angle)
    return turned


def dense(w, config, x, prefix="mlp"):
    gate, up = w[f"{prefix}.gate_proj.weight"] @ x, w[f"{prefix}.up_proj.weight"] @ x
    return w[f"{prefix}.down_proj.weight"] @ (silu(gate) * up)


def experts(w, config, x):
    """Softmax over all experts, with the largest k renormalised to one, plus the shared expert with its own gate."""
    logits = w["mlp.gate.weight"] @ x
    probability = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    chosen = np.argsort(-probability)[: config.num_experts_per_tok]
    total = np.zeros_like(x)
    for expert in chosen:
        gate, up = np.split(w["mlp.experts.gate_up_proj"][expert] @ x, 2)
        yielded = w["mlp.experts.down_proj"][expert] @ (silu(gate) * up)
        total += probability[expert] / probability[chosen].sum() * yielded
    return total + sigmoid(w["mlp.shared_expert_gate.weight"] @ x) * dense(w, config, x, "mlp.shared_expert")


def norm(x, weight, eps):
    """RMSNorm whose scale is 1 + weight."""
    return x / np.sqrt((x**2).mean() + eps) * (1 + weight)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)
