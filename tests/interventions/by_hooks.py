"""Values at sites read and replaced with torch's own hooks: slow, obvious, and nothing of the library's."""

import contextlib
import sys

import torch

from qwenlab.checkpoint.decoder import decoder_of

BATCH = 2
"""Sequences side by side: routers and experts see their tokens in one axis."""


@contextlib.contextmanager
def replaced(model, site, change):
    """change(value) -> the new value (None: leave it) at one site, for a batch of two without padding or cache."""
    decoder = decoder_of(model)
    mixer, delta = decoder.mixer(site.layer), site.kind == "linear_attention"
    with contextlib.ExitStack() as hooks:
        layer = decoder.layers[site.layer]
        if site.word in ("mixer", "mlp") and hasattr(layer, "post_feedforward_layernorm"):  # olmo_hybrid: after a norm
            module = layer.post_attention_layernorm if site.word == "mixer" else layer.post_feedforward_layernorm
            hooks.callback(module.register_forward_hook(_output(change)).remove)
        elif site.word in ("mixer", "mlp", "residual", "experts", "shared_expert"):
            module = model.get_submodule(site.module)
            hooks.callback(module.register_forward_hook(_output(change)).remove)
        elif site.word == "router":
            module = model.get_submodule(site.module)
            hooks.callback(module.register_forward_hook(_router(change)).remove)
        elif site.word == "mixer.heads":
            module = mixer.o_proj if hasattr(mixer, "o_proj") else mixer.out_proj
            sizes = (
                (mixer.num_v_heads, mixer.head_v_dim) if delta else (mixer.config.num_attention_heads, mixer.head_dim)
            )
            hooks.callback(module.register_forward_pre_hook(_argument(change, 0, *sizes)).remove)
        elif site.word == "mixer.gate" and delta:
            sizes = mixer.num_v_heads, mixer.head_v_dim
            norm = mixer.o_norm if hasattr(mixer, "o_norm") else mixer.norm
            hooks.callback(norm.register_forward_pre_hook(_argument(change, 1, *sizes)).remove)
        elif site.word == "mixer.gate":
            hooks.callback(mixer.q_proj.register_forward_hook(_second_halves(change, mixer.head_dim)).remove)
        elif delta:
            hooks.enter_context(_rule(decoder, mixer, site.word.removeprefix("mixer."), change))
        elif site.word == "mixer.query":  # before its rotation, which is the same for both values
            heads = None if mixer.q_norm.weight.numel() == mixer.head_dim else mixer.config.num_attention_heads
            hooks.callback(mixer.q_norm.register_forward_hook(_output(change, heads)).remove)
        elif site.word == "mixer.value":
            heads = decoder.module.config.num_key_value_heads
            hooks.callback(mixer.v_proj.register_forward_hook(_output(change, heads)).remove)
        yield


@torch.no_grad()
def read(model, sites, ids):
    """By site, its value while these ids are read."""
    values = {}
    with contextlib.ExitStack() as hooks:
        for site in sites:
            hooks.enter_context(
                replaced(model, site, lambda value, name=site.name: values.update({name: value.clone()}))
            )
        model(ids, use_cache=False)
    return values


def _output(change, heads=None):
    def hook(module, args, out):
        value = out[0] if isinstance(out, tuple) else out
        shape = value.shape
        value = value.reshape(BATCH, -1, shape[-1]) if value.ndim == 2 else value
        new = change(value if heads is None else value.unflatten(-1, (heads, -1)))
        if new is None:
            return None
        new = new.reshape(shape)
        return (new, *out[1:]) if isinstance(out, tuple) else new

    return hook


def _router(change):
    def hook(router, args, out):
        logits, _, chosen = out
        new = change(logits.reshape(BATCH, -1, logits.shape[-1]))
        return None if new is None else routed(new.reshape(logits.shape), chosen.shape[-1], router)

    return hook


def routed(logits, k, router):
    """What a router returns for these logits, token by token."""
    weights, chosen = [], []
    for row in logits:
        p = torch.softmax(row.double(), dim=-1)
        order = sorted(range(len(row)), key=lambda expert: -float(row[expert]))[:k]
        total = sum(p[expert] for expert in order) if getattr(router, "norm_topk_prob", True) else 1.0
        weights.append(torch.stack([p[expert] / total for expert in order]))
        chosen.append(torch.tensor(order))
    return logits, torch.stack(weights).to(logits.dtype), torch.stack(chosen)


def _argument(change, index, heads, channels):
    def hook(module, args):
        value = args[index]
        new = change(value.reshape(BATCH, -1, heads, channels))
        return None if new is None else (*args[:index], new.reshape(value.shape), *args[index + 1 :])

    return hook


def _second_halves(change, width):
    def hook(module, args, out):
        heads = out.reshape(*out.shape[:2], -1, 2 * width)
        new = change(heads[..., width:])
        return None if new is None else torch.cat([heads[..., :width], new], dim=-1).reshape(out.shape)

    return hook


@contextlib.contextmanager
def _rule(decoder, mixer, name, change):
    """The delta rule of one layer, called by name in its module."""
    modeling, speaking = sys.modules[decoder.family.modeling], []
    names = ("query", "key", "value", "g", "beta")
    original = modeling.torch_chunk_gated_delta_rule

    def rule(*args, **kwargs):
        given = dict(zip(names, args, strict=False)) | kwargs
        if speaking:
            at = "g" if name == "decay" else name
            repeated = given[at].shape[2] // mixer.num_k_heads if name in ("query", "key") else 1
            value = given[at][:, :, ::repeated]
            new = change(value.exp() if name == "decay" else value)
            if new is not None:
                new = new.log() if name == "decay" else new
                given[at] = new.repeat_interleave(repeated, dim=2)
        return original(**given)

    handles = (
        mixer.register_forward_pre_hook(lambda *_: speaking.append(True)),
        mixer.register_forward_hook(lambda *_: speaking.clear()),
    )
    modeling.torch_chunk_gated_delta_rule = rule
    try:
        yield
    finally:
        modeling.torch_chunk_gated_delta_rule = original
        for handle in handles:
            handle.remove()
