"""The parts of a model, one ablation each: layers, mixers, MLPs, heads, experts, gates, all mixers of a kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import nn

from qwenlab.ablations.ablation import Ablation
from qwenlab.checkpoint.decoder import Decoder, decoder_of, module_of
from qwenlab.checkpoint.families import KINDS
from qwenlab.checkpoint.sites import find_sites
from qwenlab.errors import BadArgument, NothingToProbe, UnknownLayer
from qwenlab.interventions.base import Intervention, indices
from qwenlab.interventions.experts import MaskExperts
from qwenlab.interventions.gates import SetGate
from qwenlab.interventions.module_sites import heads_of
from qwenlab.interventions.values import Identity, Zero

UNITS = ("layer", "mixer", "mlp", "head", "expert", "gate", "kind")
"""What can be ablated part by part.

layer   a whole layer is left out (`identity`)
mixer   what a layer's mixer adds to the stream
mlp     what its MLP, or its experts together, add
head    what one head gives to the mixer's output projection
expert  one expert is never chosen (`MaskExperts`)
gate    one gate of a layer stands open: decay 1 (nothing is forgotten), write strength 1, output gate 1
kind    all mixers of one kind
"""

_OWN = {"layer": Identity, "expert": MaskExperts, "gate": SetGate}


def units(
    model: nn.Module | Any,
    of: str = "mixer",
    *,
    edit: Callable[..., Intervention] = Zero,
    layers: Iterable[int] | None = None,
) -> list[Ablation]:
    """One ablation of every part of a kind, in the order of the layers.

    model   a transformers model of a known family, anything that contains one, or a Checkpoint
    of      one of `UNITS`
    edit    what is done to mixers, MLPs and heads: `zero`, or partial(mean, over=values), partial(noise, seed=1), ...;
            layers, experts and gates have an edit of their own
    layers  only of these layers; kinds are of all layers

    The parameters of a head are an even share of its mixer's; a gate has none of its own.

    Raises BadArgument for another kind of part or an edit that it cannot have, UnknownLayer, and NothingToProbe where
    the model has no such part.
    """
    if of not in UNITS:
        raise BadArgument(f"units(of={of!r}): choose among {', '.join(UNITS)}.")
    if of in _OWN and edit is not Zero:
        raise BadArgument(f"units(of={of!r}, edit=...): its edit is {_OWN[of].__name__}.\nLeave edit out.")
    if of == "kind" and layers is not None:
        raise BadArgument("units(of='kind', layers=...): a kind is ablated in all of its layers.\nLeave layers out.")
    decoder = decoder_of(module_of(model))
    chosen = _chosen(layers, decoder)
    found = [each for each in _MADE[of](decoder, edit) if of == "kind" or each.layer in chosen]
    if not found:
        where = "this model" if layers is None else f"layers {list(chosen)} of this model"
        raise NothingToProbe(f"units(of={of!r}) finds nothing: {where} has no {of}.\nAsk for another kind of part.")
    return found


Ablations = Iterator[Ablation]


def _layers(decoder: Decoder, edit: Callable[..., Intervention]) -> Ablations:
    for layer, kind in enumerate(decoder.layer_types):
        count = _count(decoder.layers[layer])
        yield Ablation(f"layer {layer}", (Identity([layer]),), "layer", (f"layers.{layer}",), layer, kind, count)


def _parts(of: str, decoder: Decoder, edit: Callable[..., Intervention]) -> Ablations:
    for site in find_sites(decoder.module, f"layers.*.{of}"):
        count = _count(decoder.part(site.layer, of))
        yield Ablation(f"{of} {site.layer}", (edit(site.name),), of, (site.name,), site.layer, site.kind, count)


def _heads(decoder: Decoder, edit: Callable[..., Intervention]) -> Ablations:
    for site in find_sites(decoder.module, "layers.*.mixer.heads"):
        there = heads_of(decoder, site) or 1
        count = _count(decoder.mixer(site.layer)) // there
        for head in range(there):
            edits, part = (edit(site.name, heads=[head]),), f"{site.name}[{head}]"
            yield Ablation(f"head {site.layer}.{head}", edits, "head", (part,), site.layer, site.kind, count)


def _experts(decoder: Decoder, edit: Callable[..., Intervention]) -> Ablations:
    for layer in decoder.layers_with("experts"):
        there = int(decoder.part(layer, "router").num_experts)
        kind, count = decoder.layer_types[layer], _count(decoder.part(layer, "experts")) // there
        for expert in range(there):
            edits, part = (MaskExperts([expert], layers=[layer]),), f"layers.{layer}.mlp.experts[{expert}]"
            yield Ablation(f"expert {layer}.{expert}", edits, "expert", (part,), layer, kind, count)


def _gates(decoder: Decoder, edit: Callable[..., Intervention]) -> Ablations:
    for site in find_sites(decoder.module, "layers.*.mixer.*"):
        word = site.word.removeprefix("mixer.")
        if word in ("decay", "beta", "gate"):
            name, edits = f"{word} {site.layer}", (SetGate(site.name, to=1.0),)
            yield Ablation(name, edits, "gate", (site.name,), site.layer, site.kind, 0)


def _kinds(decoder: Decoder, edit: Callable[..., Intervention]) -> Ablations:
    for kind in KINDS:
        if layers := decoder.layers_of(kind):
            parts = tuple(f"layers.{layer}.mixer" for layer in layers)
            count = sum(_count(decoder.mixer(layer)) for layer in layers)
            layer = layers[0] if len(layers) == 1 else -1
            yield Ablation(f"all {kind}", (edit("layers.*.mixer", kind=kind),), "kind", parts, layer, kind, count)


_MADE: dict[str, Callable[[Decoder, Callable[..., Intervention]], Ablations]] = {
    "layer": _layers,
    "mixer": partial(_parts, "mixer"),
    "mlp": partial(_parts, "mlp"),
    "head": _heads,
    "expert": _experts,
    "gate": _gates,
    "kind": _kinds,
}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _chosen(layers: Iterable[int] | None, decoder: Decoder) -> Sequence[int]:
    """The layers meant. Raises BadArgument and UnknownLayer."""
    count = len(decoder.layers)
    if layers is None:
        return range(count)
    chosen = indices(layers, "units(layers=...)")
    if beyond := [layer for layer in chosen if layer >= count]:
        raise UnknownLayer(f"units(layers=...) names layers {beyond}; this model has 0 to {count - 1}.")
    return chosen
