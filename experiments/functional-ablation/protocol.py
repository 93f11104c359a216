"""What is ablated, by the protocol of arXiv:2603.22473, with more controls; and what each layer adds to the stream."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import xarray as xr

from qwenlab.ablations import Ablation, combined, controls, units
from qwenlab.checkpoint.checkpoint import Checkpoint
from qwenlab.checkpoint.decoder import decoder_of
from qwenlab.errors import BadArgument
from qwenlab.interventions import cache_activations

KINDS = {"linear_attention": "DeltaNet", "full_attention": "attention"}
STEPS = (1, 2, 4, 6, 8, 12, 18)
"""How many DeltaNet layers are left out at the beginning or the end: those of the paper."""


def ablations(checkpoint: Checkpoint, *, trials: int, seed: int) -> list[Ablation]:
    """Groups, single parts and places, each with `trials` random controls where there are as many.

    groups  all layers of a kind left out, held against as many layers drawn from all of them, as the paper draws; and
            all mixers of a kind, held against as many parameters in other mixers and MLPs
    parts   each layer, mixer and MLP, held against other layers, mixers and MLPs
    places  the first and the last DeltaNet layers, and their thirds, held against as many DeltaNet layers
    """
    layers, mixers, mlps = (units(checkpoint, of) for of in ("layer", "mixer", "mlp"))
    whole = [[each for each in layers if each.kind == kind] for kind in KINDS]
    groups = [
        combined(own, f"all {KINDS[own[0].kind]} layers") for own in whole if len(own) > 1 and len(own) < len(layers)
    ]
    kinds = [replace(each, name=f"all {KINDS[each.kind]} mixers") for each in units(checkpoint, "kind")]
    found = [*groups, *(control for group in groups for control in drawn_again(group, layers, trials, seed))]
    found += [*kinds, *(control for kind in kinds for control in matched(kind, [*mixers, *mlps], trials, seed))]
    for parts in (layers, mixers, mlps):
        found += [*parts, *controls(parts, parts, number=trials, seed=seed)]
    deltanet = whole[0]
    for place in places(deltanet):
        found += [place, *drawn_again(place, deltanet, trials, seed)]
    return found


def drawn_again(group: Ablation, among: Sequence[Ablation], number: int, seed: int) -> Iterator[Ablation]:
    """Other sets of as many of these parts, drawn at random: the group's own may be among them, but not all of them.

    They overlap with the group, as those of the paper do: a group of most layers leaves no others to draw from.
    """
    rng, size = random.Random(f"{seed}-{group.name}"), len(group.parts)
    known = {frozenset(group.parts)}
    number = min(number, math.comb(len(among), size) - 1)
    while len(known) <= number:
        chosen = [among[index] for index in sorted(rng.sample(range(len(among)), size))]
        parts = frozenset(part for each in chosen for part in each.parts)
        if parts not in known:
            known.add(parts)
            names = " + ".join(each.name for each in chosen)
            yield combined(chosen, f"{group.name}, drawn again: {names}", control_of=group.name)


def matched(group: Ablation, among: Sequence[Ablation], number: int, seed: int) -> list[Ablation]:
    """Controls with as many parameters; none where the other parts have fewer in all, as with the experts of a MoE."""
    try:
        return controls([group], among, match="parameters", number=number, seed=seed)
    except BadArgument:
        return []


def places(layers: Sequence[Ablation]) -> Iterator[Ablation]:
    """Sets of two layers or more, but not all: the early, middle and late third, the first n and the last n."""
    size = math.ceil(len(layers) / 3)
    sets = {
        f"{name} third of the DeltaNet layers": layers[start : start + size]
        for name, start in zip(("early", "middle", "late"), range(0, len(layers), size), strict=False)
    }
    for count in STEPS:
        sets |= {f"first {count} DeltaNet layers": layers[:count], f"last {count} DeltaNet layers": layers[-count:]}
    known = set()
    for name, chosen in sets.items():
        parts = tuple(each.name for each in chosen)
        if 1 < len(chosen) < len(layers) and parts not in known:
            known.add(parts)
            yield combined(chosen, name)


@torch.no_grad()
def contributions(checkpoint: Checkpoint, texts: Sequence[Sequence[int]]) -> xr.Dataset:
    """What each layer does to the residual stream, by [layer, text], as the paper's second experiment defines it.

    norm_change   mean over tokens of ||y - x|| over that of ||x||, x the stream before the layer and y after it
    cosine        of x and y, mean over tokens
    mixer_ratio   mean over tokens of the norm of the mixer's output over that of ||x||
    lens_kl       KL of the distribution read off y by the final norm and lm_head from that read off x, nat, mean over
                  tokens: the paper's, of which it takes the last token
    """
    model, decoder = checkpoint.model, decoder_of(checkpoint.model)
    count = len(decoder.layers)
    names = ("norm_change", "cosine", "mixer_ratio", "lens_kl")
    found = {name: np.zeros((count, len(texts))) for name in names}
    for text, tokens in enumerate(texts):
        ids = torch.tensor([tokens], device=model.device)
        with cache_activations(model, "layers.*.mixer", "layers.*.residual") as taken:
            model(ids, use_cache=False, logits_to_keep=1)
        before = model.get_input_embeddings()(ids)[0]
        for layer in range(count):
            after, mixed = taken[f"layers.{layer}.residual"][0], taken[f"layers.{layer}.mixer"][0]
            x, y = before.float(), after.float()
            size = x.norm(dim=-1).mean()
            values = (
                (y - x).norm(dim=-1).mean() / size,
                torch.cosine_similarity(x, y, dim=-1).mean(),
                mixed.float().norm(dim=-1).mean() / size,
                _lens_kl(checkpoint, after, before),
            )
            for name, value in zip(names, values, strict=True):
                found[name][layer, text] = float(value)
            before = after
    units_of = {"lens_kl": "nat"}
    return xr.Dataset(
        {name: (("layer", "text"), values, {"units": units_of.get(name, "1")}) for name, values in found.items()},
        {"layer": np.arange(count), "kind": ("layer", list(decoder.layer_types))},
    )


def _lens_kl(checkpoint: Checkpoint, after: torch.Tensor, before: torch.Tensor) -> float:
    """KL(read off `after` || read off `before`), streams [position, channel], mean over positions."""
    norm, head = decoder_of(checkpoint.model).module.norm, checkpoint.model.get_output_embeddings()
    total = 0.0
    for y, x in zip(after.split(64), before.split(64), strict=True):  # 64 rows of a large vocabulary fit in memory
        p, q = (head(norm(each)).float().log_softmax(dim=-1) for each in (y, x))
        total += float((p.exp() * (p - q)).sum())
    return total / len(after)
