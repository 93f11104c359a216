"""Reference implementation of every layer: plain NumPy in float64, token by token, from each layer's own input.

It shares no code with the probes. The inputs of the layers come from one plain forward pass over the text; the outputs
computed here are checked against the model's own in test_by_hand.py.
"""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from qwenlab.checkpoint.decoder import decoder_of


@dataclass
class Layer:
    """Intermediate values of one layer for a text; every array begins with [token]."""

    kind: str
    mixer: dict[str, np.ndarray] = field(default_factory=dict)
    mlp: dict[str, np.ndarray] = field(default_factory=dict)
    stream: dict[str, np.ndarray] = field(default_factory=dict)  # before "mixer" and before "mlp"
    added: dict[str, np.ndarray] = field(default_factory=dict)  # by "mixer" and by "mlp", to the residual stream
    own: dict[str, np.ndarray] = field(default_factory=dict)  # outputs of the model's own "mixer" and "mlp"


def layers_of(model, tokens):
    """Return every layer of the model for this text [token]."""
    decoder, inputs = decoder_of(model), inputs_of(model, tokens)
    layers = []
    for index, (given, kind) in enumerate(zip(inputs, decoder.layer_types, strict=True)):
        mixer, mlp = decoder.part(index, "mixer"), decoder.part(index, "mlp")
        layer = Layer(kind, stream=given["stream"], added=given["added"], own=given["own"])
        if kind == "linear_attention":
            layer.mixer = deltanet(mixer, given["mixer"])
        else:
            layer.mixer = attention(mixer, given["mixer"], given.get("cos"), given.get("sin"))
        if decoder.part(index, "router") is not None:
            layer.mlp = experts(mlp, given["mlp"])
        layers.append(layer)
    return layers


def inputs_of(model, tokens):
    """Return the inputs of each layer in one forward pass over the text: float64 arrays [token, channel]."""
    decoder, result, hooks = decoder_of(model), [], []
    for index, layer in enumerate(decoder.layers):
        given = {"stream": {}, "added": {}, "own": {}}
        result.append(given)

        def enter(module, args, kwargs, given=given):
            given["stream"]["mixer"] = array(args[0] if args else kwargs["hidden_states"])

        def enter_mixer(module, args, kwargs, given=given):
            given["mixer"] = array(kwargs["hidden_states"])
            if kwargs.get("position_embeddings") is not None:
                given["cos"], given["sin"] = map(array, kwargs["position_embeddings"])

        def leave(module, args, out, kind, part, given=given):
            given[kind][part] = array(out[0] if isinstance(out, tuple) else out)

        def read_stream(module, args, given=given):
            given["stream"]["mlp"] = array(args[0])

        def enter_mlp(module, args, given=given):
            given["mlp"] = array(args[0])

        mixer, mlp = decoder.part(index, "mixer"), layer.mlp
        # The norms of olmo_hybrid's attention layers come after the mixer and after the MLP.
        post = hasattr(layer, "post_feedforward_layernorm")
        adders = (layer.post_attention_layernorm, layer.post_feedforward_layernorm) if post else (mixer, mlp)
        hooks += [
            layer.register_forward_pre_hook(enter, with_kwargs=True),
            mixer.register_forward_pre_hook(enter_mixer, with_kwargs=True),
            mlp.register_forward_pre_hook(enter_mlp),
            (mlp if post else layer.post_attention_layernorm).register_forward_pre_hook(read_stream),
        ]
        for part, module, adder in zip(("mixer", "mlp"), (mixer, mlp), adders, strict=True):
            hooks.append(module.register_forward_hook(partial(leave, kind="own", part=part)))
            hooks.append(adder.register_forward_hook(partial(leave, kind="added", part=part)))
    with torch.no_grad():
        model(input_ids=torch.as_tensor(tokens)[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return result


def deltanet(mixer, x, *, convolve=True, gated=None, removal=True):
    """A Gated DeltaNet mixer: S <- a S; S <- S + k (b (v - S^T k))^T; o = S^T q.

    convolve  False: of the convolution only the token's own tap;  removal  False: S <- S + k (b v)^T
    gated     function (ln a, b) -> (ln a, b), each [token, head], to replace the gates
    """
    key_heads, heads = mixer.num_k_heads, mixer.num_v_heads
    group, kd, vd = heads // key_heads, mixer.head_k_dim, mixer.head_v_dim
    if hasattr(mixer, "g_proj"):  # olmo_hybrid
        q, k, v, z, b, a = (x @ array(getattr(mixer, f"{name}_proj").weight).T for name in "qkvgba")
        qkv = np.concatenate([q, k, v], 1)
    elif hasattr(mixer, "in_proj_qkv"):
        qkv, z = x @ array(mixer.in_proj_qkv.weight).T, x @ array(mixer.in_proj_z.weight).T
        b, a = x @ array(mixer.in_proj_b.weight).T, x @ array(mixer.in_proj_a.weight).T
    else:  # qwen3_next: q, k, v, z and b, a side by side, one key head after the other
        width, (fused, gates) = (
            2 * kd + 2 * group * vd,
            ((x @ array(m.weight).T) for m in (mixer.in_proj_qkvz, mixer.in_proj_ba)),
        )
        parts = [
            np.split(fused[:, h * width : (h + 1) * width], [kd, 2 * kd, 2 * kd + group * vd], 1)
            for h in range(key_heads)
        ]
        q, k, v, z = (np.concatenate([part[i] for part in parts], 1) for i in range(4))
        qkv = np.concatenate([q, k, v], 1)
        pairs = gates.reshape(len(x), key_heads, 2, group)
        b, a = pairs[:, :, 0].reshape(len(x), heads), pairs[:, :, 1].reshape(len(x), heads)

    kernel = array(mixer.conv1d.weight)[:, 0]  # [channel, tap], the last tap on the token itself
    kernel = kernel if convolve else kernel * (np.arange(kernel.shape[1]) == kernel.shape[1] - 1)
    mixed = np.zeros_like(qkv)
    for t in range(len(x)):
        for tap in range(kernel.shape[1]):
            if (source := t - kernel.shape[1] + 1 + tap) >= 0:
                mixed[t] += kernel[:, tap] * qkv[source]
    mixed *= sigmoid(mixed)
    q, k, v = np.split(mixed, [key_heads * kd, 2 * key_heads * kd], 1)
    q, k = (unit(part.reshape(len(x), key_heads, kd)) for part in (q, k))
    v, z = v.reshape(len(x), heads, vd), z.reshape(len(x), heads, vd)
    doubled = 2 if getattr(mixer, "allow_neg_eigval", False) else 1
    beta, g = doubled * sigmoid(b), -np.exp(array(mixer.A_log)) * np.logaddexp(0, a + array(mixer.dt_bias))
    g, beta = (g, beta) if gated is None else gated(g, beta)

    state = np.zeros((heads, kd, vd))
    out, states = np.zeros((len(x), heads, vd)), np.zeros((len(x), heads, kd, vd))
    error, update, norm, value = (np.zeros((len(x), heads)) for _ in range(4))
    # Weights: the same rule with one-hot values, one direction per token.
    made_of, weight = np.zeros((heads, kd, len(x))), np.zeros((len(x), heads, len(x)))
    for t in range(len(x)):
        for h in range(heads):
            key, query = k[t, h // group], q[t, h // group] / np.sqrt(kd)
            state[h] *= np.exp(g[t, h])
            surprise = v[t, h] - removal * (state[h].T @ key)
            state[h] += np.outer(key, beta[t, h] * surprise)
            out[t, h] = state[h].T @ query
            made_of[h] *= np.exp(g[t, h])
            made_of[h] += np.outer(key, beta[t, h] * (np.eye(len(x))[t] - removal * (made_of[h].T @ key)))
            weight[t, h] = made_of[h].T @ query
            error[t, h], value[t, h] = np.linalg.norm(surprise), np.linalg.norm(v[t, h])
            states[t, h] = state[h]
            update[t, h], norm[t, h] = beta[t, h] * error[t, h], np.linalg.norm(state[h])
    gated_norm, onto = getattr(mixer, "o_norm", None) or mixer.norm, getattr(mixer, "o_proj", None) or mixer.out_proj
    scaled = out / np.sqrt((out**2).mean(-1, keepdims=True) + gated_norm.variance_epsilon) * array(gated_norm.weight)
    return {
        "largest_beta": doubled,
        "beta": beta,
        "g": g,
        "mean_gate": sigmoid(z).mean(-1),
        "key": k,
        "value": v,
        "state": states,
        "update_norm": update,
        "error_ratio": error / value,
        "state_norm": norm,
        "weight": weight,
        "value_norm": value,
        "out": (scaled * z * sigmoid(z)).reshape(len(x), -1) @ array(onto.weight).T,
    }


def attention(mixer, x, cos, sin, *, sees=lambda head, query, key: True):
    """A softmax-attention mixer, perhaps with an output gate: the whole [head, query, key] table of probabilities.

    sees  function (head, query, key) -> bool: whether the key is visible, among those up to the query's own
    """
    dim, tokens = mixer.head_dim, len(x)
    q, k, v = (x @ array(m.weight).T for m in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    if mixer.o_proj.in_features == q.shape[1]:  # olmo_hybrid: norms over all heads, no gate, not always positions
        q, k, gate = normed(q, mixer.q_norm), normed(k, mixer.k_norm), None
        q, k, v = (part.reshape(tokens, -1, dim) for part in (q, k, v))
    else:
        q, gate = np.split(q.reshape(tokens, -1, 2 * dim), 2, axis=-1)
        k, v = (part.reshape(tokens, -1, dim) for part in (k, v))
        q, k = normed(q, mixer.q_norm), normed(k, mixer.k_norm)
    q, k = (part if cos is None else rotated(part, cos, sin) for part in (q, k))
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    p, out = np.zeros((tokens, heads, tokens)), np.zeros((tokens, heads, dim))
    for t in range(tokens):
        for h in range(heads):
            scores = k[: t + 1, h // group] @ q[t, h] / np.sqrt(dim)
            scores = np.where([sees(h, t, key) for key in range(t + 1)], scores, -np.inf)
            weights = np.exp(scores - scores.max())
            p[t, h, : t + 1] = weights / weights.sum()
            out[t, h] = p[t, h, : t + 1] @ v[: t + 1, h // group]
    out = (out if gate is None else out * sigmoid(gate)).reshape(tokens, -1) @ array(mixer.o_proj.weight).T
    values = np.repeat(v, group, axis=1)
    plain = {"probability": p, "out": out, "value_norm": np.linalg.norm(values, axis=-1)}
    if gate is None:
        return plain
    gated = np.linalg.norm(sigmoid(gate)[:, None] * values[None], axis=-1).transpose(0, 2, 1)
    return plain | {
        "mean_gate": sigmoid(gate).mean(-1),
        "gated_norm": gated,  # [query, head, key]: of the key's value behind the query's gate
    }


def experts(mlp, x):
    """Routed experts with a shared one: y = sum of w_e expert_e(x) over the top k + sigmoid(gate) shared(x)."""
    routed, shared, chosen, weights, probability = [], [], [], [], []
    gate = sigmoid(x @ array(mlp.shared_expert_gate.weight)[0])
    gate_up, down = array(mlp.experts.gate_up_proj), array(mlp.experts.down_proj)
    for token, openness in zip(x, gate, strict=True):
        logits = array(mlp.gate.weight) @ token
        p = np.exp(logits - logits.max())
        p /= p.sum()
        top = np.argsort(-p)[: mlp.gate.top_k]
        w = p[top] / p[top].sum()
        used = w if getattr(mlp.gate, "norm_topk_prob", True) else p[top]
        routed.append(
            sum(weight * feed_forward(token, gate_up[e], down[e]) for weight, e in zip(used, top, strict=True))
        )
        inner = np.concatenate([array(mlp.shared_expert.gate_proj.weight), array(mlp.shared_expert.up_proj.weight)])
        shared.append(openness * feed_forward(token, inner, array(mlp.shared_expert.down_proj.weight)))
        chosen.append(top)
        weights.append(w)
        probability.append(p)
    ours, theirs = np.linalg.norm(shared, axis=-1), np.linalg.norm(routed, axis=-1)
    return {
        "probability": np.array(probability),
        "chosen": np.array(chosen),
        "weights": np.array(weights),
        "shared_gate": gate,
        "shared_share": ours / (ours + theirs),
        "out": np.array(routed) + np.array(shared),
    }


def feed_forward(x, gate_up, down):
    gate, up = np.split(gate_up @ x, 2)
    return down @ (gate * sigmoid(gate) * up)


def rotated(x, cos, sin):
    """Rotary positions on the first channels; the second half of those is turned against the first."""
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    half = np.concatenate([-turned[..., width // 2 :], turned[..., : width // 2]], -1)
    return np.concatenate([turned * cos[:, None] + half * sin[:, None], rest], -1)


def normed(x, norm):
    """RMS norm: in Qwen's with weights around 0, in olmo_hybrid's around 1."""
    eps, weight = (
        (norm.eps, 1 + array(norm.weight)) if hasattr(norm, "eps") else (norm.variance_epsilon, array(norm.weight))
    )
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def array(tensor):
    """float64 [..., channel], without a batch of one in front."""
    out = tensor.detach().double().numpy()
    return out[0] if out.ndim == 3 and out.shape[0] == 1 else out
