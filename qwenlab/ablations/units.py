"""One ablation per part of a model: layers, mixers, MLPs, heads, experts, gates, or all mixers of a kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from qwenlab.ablations.ablation import Ablation
from qwenlab.arguments import choice
from qwenlab.checkpoint.decoder import Decoder, decoder_of, module_of
from qwenlab.checkpoint.families import KINDS
from qwenlab.checkpoint.sites import find_sites
from qwenlab.errors import BadArgument, MissingPart, UnknownLayer
from qwenlab.interventions.base import Intervention, indices
from qwenlab.interventions.experts import MaskExperts
from qwenlab.interventions.gates import SetGate
from qwenlab.interventions.points import heads_of
from qwenlab.interventions.values import Identity, Zero

UNITS = ("layer", "mixer", "mlp", "head", "expert", "gate", "kind")
"""Kinds of parts to ablate.

layer   a whole layer is left out (`Identity`)
mixer   the output of a layer's mixer
mlp     the output of its MLP, or of its experts together
head    the input of the mixer's output projection from one head
expert  one expert is never chosen (`MaskExperts`)
gate    one gate of a layer is set to 1: the decay (nothing is forgotten), the write strength or the output gate
kind    all mixers of one kind
"""

_FIXED = {"layer": Identity, "expert": MaskExperts, "gate": SetGate}


def units(
    model: nn.Module | Any,
    of: str = "mixer",
    *,
    intervention: Callable[..., Intervention] = Zero,
    layers: Iterable[int] | None = None,
) -> list[Ablation]:
    """One ablation per part of a kind, in the order of the layers.

    model   a transformers model of a known family, anything that contains one, or a Checkpoint
    of      one of `UNITS`
    intervention  what to do to mixers, MLPs and heads: `Zero`, partial(Mean, cache=cache), partial(Noise, seed=1), ...;
                  layers, experts and gates have one of their own
    layers  only parts of these layers; not for "kind"

    The parameters of a head are an even share of its mixer's; a gate has none.

    Raises BadArgument for another kind of part or an intervention that it cannot have, UnknownLayer, and MissingPart
    if the model has no such part.
    """
    choice("units", "of", of, UNITS)
    if of in _FIXED and intervention is not Zero:
        raise BadArgument(
            f"units(of={of!r}, intervention=...) is always {_FIXED[of].__name__}.\nLeave `intervention` out."
        )
    if of == "kind" and layers is not None:
        raise BadArgument("units(of='kind', layers=...) always ablates all layers of a kind.\nLeave `layers` out.")
    decoder = decoder_of(module_of(model))
    chosen = _chosen(layers, decoder)
    ablations = [each for each in _built(decoder, of, intervention) if of == "kind" or each.layer in chosen]
    if not ablations:
        where = "this model" if layers is None else f"layers {list(chosen)} of this model"
        raise MissingPart(f"units(of={of!r}) finds nothing: {where} has no {of}.\nChoose another kind of part.")
    return ablations


def _built(decoder: Decoder, of: str, intervention: Callable[..., Intervention]) -> Iterator[Ablation]:
    """One ablation per part of a kind, in all layers."""
    kinds = decoder.layer_types
    match of:
        case "layer":
            for layer, module in enumerate(decoder.layers):
                part = f"layers.{layer}"
                yield Ablation(f"layer {layer}", (Identity([layer]),), of, (part,), layer, kinds[layer], _count(module))
        case "mixer" | "mlp":
            for site in find_sites(decoder.module, f"layers.*.{of}"):
                layer, count, applied = site.layer, _count(decoder.part(site.layer, of)), (intervention(site.name),)
                yield Ablation(f"{of} {layer}", applied, of, (site.name,), layer, site.kind, count)
        case "head":
            for site in find_sites(decoder.module, "layers.*.mixer.heads"):
                heads = heads_of(decoder, site) or 1
                layer, count = site.layer, _count(decoder.mixer(site.layer)) // heads
                for head in range(heads):
                    part, applied = f"{site.name}[{head}]", (intervention(site.name, heads=[head]),)
                    yield Ablation(f"head {layer}.{head}", applied, of, (part,), layer, site.kind, count)
        case "expert":
            for layer in decoder.layers_with("experts"):
                experts = int(decoder.part(layer, "router").num_experts)
                count = _count(decoder.part(layer, "experts")) // experts
                for expert in range(experts):
                    part, applied = f"layers.{layer}.mlp.experts[{expert}]", (MaskExperts([expert], layers=[layer]),)
                    yield Ablation(f"expert {layer}.{expert}", applied, of, (part,), layer, kinds[layer], count)
        case "gate":
            for site in find_sites(decoder.module, "layers.*.mixer.*"):
                if (gate := site.word.removeprefix("mixer.")) in ("decay", "beta", "gate"):
                    layer, applied = site.layer, (SetGate(site.name, to=1.0),)
                    yield Ablation(f"{gate} {layer}", applied, of, (site.name,), layer, site.kind, 0)
        case "kind":
            for kind in filter(decoder.layers_of, KINDS):
                layers = decoder.layers_of(kind)
                parts = tuple(f"layers.{layer}.mixer" for layer in layers)
                layer, count = layers[0] if len(layers) == 1 else -1, sum(_count(decoder.mixer(n)) for n in layers)
                yield Ablation(
                    f"all {kind}", (intervention("layers.*.mixer", kind=kind),), of, parts, layer, kind, count
                )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _chosen(layers: Iterable[int] | None, decoder: Decoder) -> Sequence[int]:
    """The chosen layers. Raises BadArgument and UnknownLayer."""
    count = len(decoder.layers)
    if layers is None:
        return range(count)
    chosen = indices(layers, "units(layers=...)")
    if beyond := [layer for layer in chosen if layer >= count]:
        raise UnknownLayer(f"units(layers=...) names layers {beyond}; this model has 0 to {count - 1}.")
    return chosen
