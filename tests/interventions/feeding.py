"""What edits are given to work on."""

import torch

from qwenlab.interventions import (
    force_experts,
    freeze_state,
    identity,
    mask_experts,
    mean,
    no_conv,
    no_key_removal,
    no_shared_expert,
    no_sink,
    noise,
    patch,
    resample,
    reset_state,
    scale,
    set_gate,
    shuffle_router,
    state_dtype,
    take,
    top_k,
    uniform_router,
    window,
    zero,
)


@torch.no_grad()
def logits(model, ids, **given):
    return model(ids, use_cache=False, **given).logits


def taken(model, ids, *patterns):
    """Values while these ids are read."""
    with take(model, *patterns) as values:
        logits(model, ids)
    return values


def one_of_each(model, text):
    """Every edit there is, each alone fit for this model with routed experts, at layer 0 of DeltaNet where it can."""
    values = taken(model, text(20, 9)[None], "layers.0.mixer")
    return (
        zero("layers.0.mixer"),
        scale("layers.0.mixer.beta", by=0.5),
        mean("layers.0.mixer", over=values),
        resample("layers.0.mixer", of=values),
        noise("layers.0.mixer"),
        identity([0]),
        patch("layers.0.mixer", of=values),
        set_gate("layers.*.mixer.gate", to=0.5),
        freeze_state(2),
        reset_state(3),
        no_key_removal(),
        no_conv(),
        state_dtype("int8"),
        window(3),
        no_sink(heads=[1]),
        mask_experts([0, 3]),
        top_k(1),
        force_experts([2, 6]),
        uniform_router(),
        shuffle_router(),
        no_shared_expert(),
    )


def at(model, ids, site):
    """The value at one site while these ids are read, whatever edits are in force."""
    return taken(model, ids, site)[site]


def of_every_sort(model, text):
    """One edit a kind of place, several of some."""
    over = taken(
        model, torch.stack([text(12, 7), text(12, 8)]), "layers.*.mlp", "layers.0.mixer", "layers.*.mixer.beta"
    )
    routed = (top_k(1), mask_experts([0]), uniform_router(), shuffle_router(), no_shared_expert())
    return (
        zero("layers.*.mixer.heads", heads=[1]),
        scale("layers.*.mixer.*e*", by=0.8, kind="linear_attention"),  # value, query, key, beta, decay, gate, heads
        scale("layers.*.mixer.query", by=0.5, kind="full_attention"),
        scale("layers.*.mixer.value", by=0.5, kind="full_attention"),
        scale("layers.*.mixer.gate", by=0.5),
        mean("layers.*.mlp", over=over, positions=[1, 3]),
        resample("layers.*.mixer.beta", of=over),
        noise("layers.0.residual", positions=[4]),
        identity([1]),
        patch("layers.0.mixer", of=taken(model, text(20, 9)[None], "layers.0.mixer")),
        *(routed if hasattr(model.config, "num_experts") else ()),
    )
