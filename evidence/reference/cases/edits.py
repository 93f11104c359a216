"""Outputs of the model under every edit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from evidence.reference.cases.recordings import gradients
from evidence.reference.models import MODELS, TOYS, opened, padded, sequences
from evidence.reference.names import get, of
from evidence.reference.results import Cases


def cases() -> Cases:
    """Yield a case for each edit of each model, and the values that edits are made of."""
    for model in (*TOYS, "tiny-qwen3_next"):
        for name, (edit, *arguments) in {**EDITS, **({} if "dense" in model else ROUTED)}.items():
            yield f"edits/{model}/{name}", partial(edited, model, edit, *arguments)
        yield f"edits/{model}/together", partial(together, model)
    for model in MODELS:
        yield f"edits/{model}/values", partial(values, model)


def edited(model: str, edit: str, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None) -> Any:
    """What a model returns under one edit: in one pass, through a cache, in generate and in training."""
    options = dict(options or {})
    arguments = tuple(experts(model) if each is CHOSEN else each for each in arguments)
    for name, value in options.items():
        if value is VALUES:
            options[name] = taken(model, arguments[0], options.get("kind"))
    return returned(model, lambda: get(f"probe.{edit}")(*arguments, **options), cached=edit == "state_dtype")


def returned(model: str, make: Callable[[], Any], *, cached: bool = False) -> dict[str, Any]:
    """Logits, tokens and gradients under an edit; `cached`: only those of passes through a cache."""
    module = opened(model).model
    found: dict[str, Any] = {}
    with get("edit")(opened(model), make()) as editing, torch.no_grad():
        found["cached"] = through_a_cache(model)
    found["fired"] = list(of(editing, "fired").values())
    if cached:
        return found
    for side in ("left", "right"):
        with get("edit")(opened(model), make()), torch.no_grad():
            found[side] = module(**inputs(model, side), use_cache=False).logits[:, 10:20, ::4]
    with get("edit")(opened(model), make()), torch.no_grad():
        found["generated"] = module.generate(**inputs(model, "left"), max_new_tokens=6, do_sample=False, pad_token_id=0)
    with get("edit")(opened(model), make()):
        loss = module(**inputs(model, "right"), labels=inputs(model, "right")["input_ids"], use_cache=False).loss
        loss.backward()
    found["training"] = {"loss": loss, "gradients": gradients(module)}
    module.zero_grad(set_to_none=True)
    return found


def inputs(model: str, side: str) -> dict[str, torch.Tensor]:
    """A padded batch."""
    return padded(sequences(model, 25, 38, 21), side)


def through_a_cache(model: str) -> list[torch.Tensor]:
    """Logits of a prefill and of steps of one token."""
    ids, cache, found, start = torch.stack(sequences(model, 26, 26)), None, [], 0
    for width in (19, 3, 1, 1, 1, 1):
        columns = ids[:, start : start + width]
        out = opened(model).model(columns, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, start = out.past_key_values, start + width
        found.append(out.logits)
    return found


def taken(model: str, pattern: str, kind: str | None = None) -> Any:
    """Values of other texts, longer than those that edits change."""
    ids = padded(sequences(model, 60, 60, 52, 44)[::-1], "right")
    with get("probe.take")(opened(model), pattern, kind=kind) as found, torch.no_grad():
        opened(model).model(**ids, use_cache=False)
    return found


def experts(model: str) -> list[int]:
    """As many experts as the router of a model chooses."""
    return list(range(1, 1 + opened(model).model.config.num_experts_per_tok))


def values(model: str) -> Any:
    """The values at every kind of site, with their means."""
    found = {}
    for pattern, kind in {**SITES, **({} if "dense" in model else ROUTED_SITES)}.items():
        whole = taken(model, pattern, kind)
        found[pattern] = {site: (of(whole, "mean")(site), whole[site].flatten()[::7]) for site in of(whole, "sites")}
    return found


def together(model: str) -> Any:
    """Several edits at once."""
    edits = [get(f"probe.{edit}")(*arguments, **options) for edit, arguments, options in TOGETHER]
    with get("edit")(opened(model), *edits) as editing, torch.no_grad():
        logits = through_a_cache(model)
    return {"logits": logits, "fired": list(of(editing, "fired").values())}


VALUES = object()
"""Stands for the values taken at the sites of an edit."""

CHOSEN = object()
"""Stands for the numbers of as many experts as a token has."""

ATTENTION, DELTANET = "full_attention", "linear_attention"

EDITS: dict[str, tuple[Any, ...]] = {
    "zero a mixer": ("zero", ("layers.1.mixer",)),
    "zero every MLP": ("zero", ("layers.*.mlp",), {"positions": [3, 5]}),
    "zero heads": ("zero", ("layers.*.mixer.heads",), {"kind": ATTENTION, "heads": [0, 2]}),
    "scale": ("scale", ("layers.2.residual",), {"by": 1.25}),
    "scale keys": ("scale", ("layers.*.mixer.key",), {"kind": DELTANET, "by": 0.5}),
    "mean": ("mean", ("layers.*.mixer",), {"kind": ATTENTION, "over": VALUES}),
    "mean of heads": ("mean", ("layers.0.mixer.heads",), {"heads": [1], "over": VALUES}),
    "resample": ("resample", ("layers.*.mixer",), {"of": VALUES, "seed": 3}),
    "noise": ("noise", ("layers.*.mlp",), {"seed": 5}),
    "noise in heads": ("noise", ("layers.2.mixer.heads",), {"heads": [3], "seed": 6}),
    "patch": ("patch", ("layers.2.residual",), {"of": VALUES, "positions": [4, 7]}),
    "patch heads": ("patch", ("layers.3.mixer.heads",), {"of": VALUES, "heads": [0]}),
    "identity": ("identity", ([1, 3],)),
    "set_gate decay": ("set_gate", ("layers.*.mixer.decay",), {"to": 0.95}),
    "set_gate beta": ("set_gate", ("layers.0.mixer.beta",), {"scale": 0.5, "heads": [1, 2]}),
    "set_gate output": ("set_gate", ("layers.*.mixer.gate",), {"to": 1.0}),
    "freeze_state": ("freeze_state", (9,)),
    "freeze_state of heads": ("freeze_state", (4,), {"layers": [0, 2], "heads": [1]}),
    "reset_state": ("reset_state", (7,)),
    "reset_state of heads": ("reset_state", (5,), {"layers": [1], "heads": [0, 3]}),
    "no_key_removal": ("no_key_removal",),
    "no_key_removal in one layer": ("no_key_removal", (), {"layers": [2]}),
    "no_conv": ("no_conv",),
    "no_conv in one layer": ("no_conv", (), {"layers": [0]}),
    "state_dtype bfloat16": ("state_dtype", ("bfloat16",)),
    "state_dtype float8": ("state_dtype", ("float8_e4m3",), {"layers": [0, 1]}),
    "state_dtype int8": ("state_dtype", ("int8",)),
    "window": ("window", (8,)),
    "window of heads": ("window", (3,), {"heads": [1]}),
    "no_sink": ("no_sink",),
    "no_sink of heads": ("no_sink", (), {"heads": [0, 3]}),
}
"""Name of the case -> edit, arguments, options."""

ROUTED: dict[str, tuple[Any, ...]] = {
    "mask_experts": ("mask_experts", ([0, 3, 5],)),
    "mask_experts in a layer": ("mask_experts", ([1],), {"layers": [2]}),
    "force_experts": ("force_experts", (CHOSEN,), {"layers": [0, 1]}),
    "top_k 1": ("top_k", (1,)),
    "top_k 5": ("top_k", (5,), {"layers": [3]}),
    "uniform_router": ("uniform_router",),
    "shuffle_router": ("shuffle_router", (4,)),
    "no_shared_expert": ("no_shared_expert",),
    "zero routed": ("zero", ("layers.1.mlp",)),
}

TOGETHER: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    ("zero", ("layers.0.mixer",), {}),
    ("window", (5,), {}),
    ("freeze_state", (6,), {"layers": [2]}),
    ("scale", ("layers.*.mlp",), {"by": 0.9}),
)

MIXER_SITES = ("mixer", "mixer.query", "mixer.value", "mixer.heads", "mixer.gate")
DELTANET_SITES = ("mixer.key", "mixer.beta", "mixer.decay")
SITES: dict[str, str | None] = {
    **{f"layers.*.{site}": None for site in (*MIXER_SITES, "mlp", "residual")},
    **{f"layers.*.{site}": DELTANET for site in DELTANET_SITES},
}
ROUTED_SITES: dict[str, str | None] = {f"layers.*.{site}": None for site in ("experts", "shared_expert")}
