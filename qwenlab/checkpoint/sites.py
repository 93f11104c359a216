"""Sites: names of the values inside a model that can be read or replaced, the same for both kinds of mixer."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from qwenlab.arguments import choice
from qwenlab.checkpoint.decoder import Decoder, decoder_of
from qwenlab.checkpoint.families import KINDS
from qwenlab.checkpoint.mixers.base import TOKEN
from qwenlab.errors import UnknownSite

_STREAM = (*TOKEN, "channel")


@dataclass(frozen=True, slots=True)
class Site:
    """A named value inside the model that can be read or replaced.

    name    "layers.3.mixer": the same for both kinds of layer
    module  path, in the model, of the module that computes the value
    dims    the axes of the value, as probes see it
    units   "residual" (a vector of the residual stream, or added to it), "logit" (before its sigmoid, silu or
            softmax), "1" (a plain number)
    kind    the mixer of the layer: "linear_attention" or "full_attention"
    """

    name: str
    module: str
    dims: tuple[str, ...]
    units: str
    kind: str
    layer: int

    @property
    def word(self) -> str:
        """The name without its layer: "mixer.decay"."""
        return self.name.split(".", 2)[2]


def sites(model: nn.Module) -> tuple[Site, ...]:
    """Return every site of the model, layer by layer.

    layers.N.mixer          output of the mixer, added to the residual stream (after its norm, where it has one there)
    layers.N.mixer.query    input of the delta rule (before its L2 norm) or of the scores (after norm and rotation)
    layers.N.mixer.key
    layers.N.mixer.value
    layers.N.mixer.heads    input of the output projection, by head: normed (DeltaNet), and gated
    layers.N.mixer.gate     the output gate, before its silu (DeltaNet) or sigmoid (attention; olmo_hybrid has none)
    layers.N.mixer.beta     write strength in (0, 1), or (0, 2) with negative eigenvalues; DeltaNet only
    layers.N.mixer.decay    alpha = exp(g) in (0, 1), the share of the state that remains; DeltaNet only
    layers.N.router         logits over all routed experts
    layers.N.experts        sum of the routed experts
    layers.N.shared_expert  output of the shared expert, before its gate
    layers.N.mlp            output of the dense MLP, or of all experts, added to the residual stream
    layers.N.residual       the residual stream after the layer
    """
    decoder = decoder_of(model)
    return tuple(site for layer in range(len(decoder.layer_types)) for site in _layer_sites(decoder, layer))


def find_sites(model: nn.Module, pattern: str, kind: str | None = None) -> tuple[Site, ...]:
    """Return the sites whose names match a glob pattern, in the order of the layers.

    pattern  "layers.3.mixer", "layers.*.mixer.beta", "layers.[0-3].*": a `*` does not match a dot
    kind     only layers with this mixer, "linear_attention" or "full_attention"

    Raises UnknownSite if nothing matches: an empty result would look like a value that does not exist.
    """
    if kind is not None:
        choice("find_sites", "kind", kind, KINDS)
    known = sites(model)
    matches = tuple(site for site in known if _matches(site.name, pattern) and kind in (None, site.kind))
    if not matches:
        raise UnknownSite(_no_match(known, pattern, kind))
    return matches


def _layer_sites(decoder: Decoder, layer: int) -> Iterator[Site]:
    family, kind, path = decoder.family, decoder.layer_types[layer], decoder.layer_path(layer)

    def site(word: str, module: str, dims: tuple[str, ...], units: str) -> Site:
        return Site(f"layers.{layer}.{word}", f"{path}.{module}" if module else path, dims, units, kind, layer)

    mixer = decoder.kind(layer)
    yield site("mixer", mixer.norms[0] if mixer.post_norm else mixer.path, _STREAM, "residual")
    for each in mixer.sites():
        yield site(each.word, f"{mixer.path}.{each.module}".rstrip("."), each.dims, each.units)
    if decoder.part(layer, "experts") is not None:  # dense layers have none of these
        yield site("router", family.router, (*TOKEN, "expert"), "logit")
        yield site("experts", family.experts, _STREAM, "residual")
        yield site("shared_expert", family.shared_expert, _STREAM, "residual")
    yield site("mlp", mixer.norms[1] if mixer.post_norm else family.mlp, _STREAM, "residual")
    yield site("residual", "", _STREAM, "residual")


def _matches(name: str, pattern: str) -> bool:
    names, patterns = name.split("."), pattern.split(".")
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))


def _no_match(known: tuple[Site, ...], pattern: str, kind: str | None) -> str:
    """The message for a pattern without a match: lists the sites of the layers it names, and suggests near ones."""
    requested = f"{pattern!r}" + (f" among the {kind} layers" if kind else "")
    layer, word = _split(pattern)
    available = [site for site in known if fnmatchcase(str(site.layer), layer) and kind in (None, site.kind)]
    if not available:
        layers = list(dict.fromkeys(str(site.layer) for site in known if kind in (None, site.kind)))
        what = f"{kind} layers" if kind else "layers"
        return f"No site matches {requested}: the {what} are {', '.join(layers)}.\nUse one of these, or '*' for all."
    lines = [_sites_of_kind(available, mixer) for mixer in KINDS]
    elsewhere = [str(site.layer) for site in known if site.word == word]
    near = difflib.get_close_matches(word, {site.word for site in available}, n=3, cutoff=0.8)
    if elsewhere:
        fix = f"{word} exists at layers {', '.join(elsewhere)}: write layers.N.{word}."
    elif near:
        fix = "Did you mean " + " or ".join(f"layers.{layer}.{name}" for name in near) + "?"
    else:
        fix = f"Write layers.{layer}. and one of these names."
    return f"No site matches {requested}. The sites of layers.{layer} are:\n" + "".join(lines) + fix


def _split(pattern: str) -> tuple[str, str]:
    """The layer and the rest of a pattern; a pattern that does not start with `layers.` means all layers."""
    parts = pattern.split(".")
    if parts[0] != "layers":
        return "*", ".".join(parts)
    return parts[1] if len(parts) > 1 else "*", ".".join(parts[2:])


def _sites_of_kind(available: list[Site], kind: str) -> str:
    """One line: the layers of a kind and the names of their sites."""
    of_kind = [site for site in available if site.kind == kind]
    if not of_kind:
        return ""
    layers = dict.fromkeys(str(site.layer) for site in of_kind)
    words = dict.fromkeys(site.word for site in of_kind)
    return f"  {kind} ({', '.join(layers)}): {', '.join(words)}\n"
