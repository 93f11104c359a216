"""Inputs for tests of interventions: logits, cached activations, and one intervention of every class."""

import torch

from qwenlab.interventions import (
    ForceExperts,
    FreezeState,
    Identity,
    MaskExperts,
    Mean,
    NoConv,
    Noise,
    NoKeyRemoval,
    NoSharedExpert,
    NoSink,
    Patch,
    Resample,
    ResetState,
    Scale,
    SetGate,
    ShuffleRouter,
    StateDtype,
    TopK,
    UniformRouter,
    Window,
    Zero,
    cache_activations,
)


@torch.no_grad()
def logits(model, ids, **given):
    return model(ids, use_cache=False, **given).logits


def taken(model, ids, *patterns):
    """Activations while the model reads these ids."""
    with cache_activations(model, *patterns) as values:
        logits(model, ids)
    return values


def one_of_each(model, text):
    """One intervention of every class, each valid for this model with routed experts; at layer 0 where possible."""
    values = taken(model, text(20, 9)[None], "layers.0.mixer")
    return (
        Zero("layers.0.mixer"),
        Scale("layers.0.mixer.beta", by=0.5),
        Mean("layers.0.mixer", cache=values),
        Resample("layers.0.mixer", cache=values),
        Noise("layers.0.mixer"),
        Identity([0]),
        Patch("layers.0.mixer", cache=values),
        SetGate("layers.*.mixer.gate", to=0.5),
        FreezeState(2),
        ResetState(3),
        NoKeyRemoval(),
        NoConv(),
        StateDtype("int8"),
        Window(3),
        NoSink(heads=[1]),
        MaskExperts([0, 3]),
        TopK(1),
        ForceExperts([2, 6]),
        UniformRouter(),
        ShuffleRouter(),
        NoSharedExpert(),
    )


def at(model, ids, site):
    """The value at one site while the model reads these ids, under the active interventions."""
    return taken(model, ids, site)[site]


def of_every_sort(model, text):
    """At least one intervention per kind of intervention point."""
    over = taken(
        model, torch.stack([text(12, 7), text(12, 8)]), "layers.*.mlp", "layers.0.mixer", "layers.*.mixer.beta"
    )
    routed = (TopK(1), MaskExperts([0]), UniformRouter(), ShuffleRouter(), NoSharedExpert())
    return (
        Zero("layers.*.mixer.heads", heads=[1]),
        Scale("layers.*.mixer.*e*", by=0.8, kind="linear_attention"),  # value, query, key, beta, decay, gate, heads
        Scale("layers.*.mixer.query", by=0.5, kind="full_attention"),
        Scale("layers.*.mixer.value", by=0.5, kind="full_attention"),
        Scale("layers.*.mixer.gate", by=0.5),
        Mean("layers.*.mlp", cache=over, positions=[1, 3]),
        Resample("layers.*.mixer.beta", cache=over),
        Noise("layers.0.residual", positions=[4]),
        Identity([1]),
        Patch("layers.0.mixer", cache=taken(model, text(20, 9)[None], "layers.0.mixer")),
        *(routed if hasattr(model.config, "num_experts") else ()),
    )
