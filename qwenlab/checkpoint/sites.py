"""The places of a model where a value can be read or replaced, under the same words for both kinds of mixer."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from qwenlab.checkpoint.decoder import Decoder, decoder_of
from qwenlab.checkpoint.families import ATTENTION, DELTANET, KINDS, Family
from qwenlab.errors import BadArgument, UnknownSite

_TOKEN = ("sequence", "position")
_STREAM = (*_TOKEN, "channel")
_HEADS = (*_TOKEN, "head")
_QUERIES = (*_TOKEN, "head", "channel")
_KEYS = (*_TOKEN, "key_head", "channel")


@dataclass(frozen=True, slots=True)
class Site:
    """One place in the stack where a tensor can be read or replaced.

    name    our word: "layers.3.mixer", the same whatever the kind of the layer
    module  the model's word: the path, from the model given, of the module in which the value is made
    dims    the axes of the value, as a probe hands it on
    units   "residual" (a vector of the stream, or added to it), "logit" (before its sigmoid, silu or softmax),
            "1" (a plain number)
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
    """Every site of the model, layer by layer.

    layers.N.mixer          what the mixer adds to the stream
    layers.N.mixer.query    as the delta rule (before its L2 norm) or the scores (after norm and rotation) take it
    layers.N.mixer.key
    layers.N.mixer.value
    layers.N.mixer.heads    what each head gives to the output projection: normed (DeltaNet), and gated
    layers.N.mixer.gate     the output gate, before its silu (DeltaNet) or sigmoid (attention)
    layers.N.mixer.beta     write strength in (0, 1); DeltaNet only
    layers.N.mixer.decay    alpha = exp(g) in (0, 1), the share of the state that is kept; DeltaNet only
    layers.N.router         logits over all routed experts
    layers.N.experts        what the routed experts add together
    layers.N.shared_expert  what the shared expert yields, before its gate
    layers.N.mlp            what the dense MLP, or the experts all together, add to the stream
    layers.N.residual       the stream after the layer
    """
    decoder = decoder_of(model)
    return tuple(site for layer in range(len(decoder.layer_types)) for site in _layer_sites(decoder, layer))


def find_sites(model: nn.Module, pattern: str, kind: str | None = None) -> tuple[Site, ...]:
    """The sites whose names match a glob pattern, in the order of the layers.

    pattern  "layers.3.mixer", "layers.*.mixer.beta", "layers.[0-3].*": a `*` stands within two dots, never across one
    kind     only layers with this mixer, "linear_attention" or "full_attention"

    Raises UnknownSite where nothing matches: a pattern that reads nothing would look like a value that is not there.
    """
    if kind is not None and kind not in KINDS:
        raise BadArgument(f"kind={kind!r} is no kind of mixer.\nUse {' or '.join(map(repr, KINDS))}, or leave it out.")
    known = sites(model)
    found = tuple(site for site in known if _matches(site.name, pattern) and kind in (None, site.kind))
    if not found:
        raise UnknownSite(_nothing(known, pattern, kind))
    return found


def _layer_sites(decoder: Decoder, layer: int) -> Iterator[Site]:
    family, kind, here = decoder.family, decoder.layer_types[layer], decoder.layer_path(layer)

    def site(word: str, module: str, dims: tuple[str, ...], units: str) -> Site:
        return Site(f"layers.{layer}.{word}", f"{here}.{module}" if module else here, dims, units, kind, layer)

    mixer = family.mixer(kind)
    yield site("mixer", mixer, _STREAM, "residual")
    yield site("mixer.query", mixer, _KEYS if kind == DELTANET else _QUERIES, "1")
    yield site("mixer.key", mixer, _KEYS, "1")
    yield site("mixer.value", mixer, _QUERIES if kind == DELTANET else _KEYS, "1")
    yield site("mixer.heads", f"{mixer}.{family.output(kind)}", _QUERIES, "1")
    if gate := _gate(family, kind):
        yield site("mixer.gate", f"{mixer}.{gate}", _QUERIES, "logit")
    if kind == DELTANET:
        yield site("mixer.beta", mixer, _HEADS, "1")
        yield site("mixer.decay", mixer, _HEADS, "1")
    if decoder.part(layer, "experts") is not None:  # a dense layer, or a dense family, has none of these
        yield site("router", family.router, (*_TOKEN, "expert"), "logit")
        yield site("experts", family.experts, _STREAM, "residual")
        yield site("shared_expert", family.shared_expert, _STREAM, "residual")
    yield site("mlp", family.mlp, _STREAM, "residual")
    yield site("residual", "", _STREAM, "residual")


def _gate(family: Family, kind: str) -> str | None:
    """The projection that makes the output gate."""
    if kind == ATTENTION:
        return "q_proj" if family.attention_gate else None
    return next(name for name, held in family.delta_inputs if "z" in held)


def _matches(name: str, pattern: str) -> bool:
    names, patterns = name.split("."), pattern.split(".")
    return len(names) == len(patterns) and all(map(fnmatchcase, names, patterns))


def _nothing(known: tuple[Site, ...], pattern: str, kind: str | None) -> str:
    """What to say when a pattern matches no site: what there is at the layers it means, and what comes near."""
    meant = f"{pattern!r}" + (f" among the {kind} layers" if kind else "")
    layer, word = _split(pattern)
    there = [site for site in known if fnmatchcase(str(site.layer), layer) and kind in (None, site.kind)]
    if not there:
        layers = list(dict.fromkeys(str(site.layer) for site in known if kind in (None, site.kind)))
        what = f"{kind} layers" if kind else "layers"
        return f"no site matches {meant}: the {what} are {', '.join(layers)}.\nName one of these, or '*' for all."
    lines = [_listed(there, each) for each in KINDS]
    elsewhere = [str(site.layer) for site in known if site.word == word]
    near = difflib.get_close_matches(word, {site.word for site in there}, n=3, cutoff=0.8)
    if elsewhere:
        mend = f"{word} is at layers {', '.join(elsewhere)}: write layers.N.{word}."
    elif near:
        mend = "Did you mean " + " or ".join(f"layers.{layer}.{name}" for name in near) + "?"
    else:
        mend = f"Write layers.{layer}. and one of these words."
    return f"no site matches {meant}. Under layers.{layer}. there is:\n" + "".join(lines) + mend


def _split(pattern: str) -> tuple[str, str]:
    """The layer and the word of a pattern; one that does not begin with `layers.` is taken for a word."""
    parts = pattern.split(".")
    if parts[0] != "layers":
        return "*", ".".join(parts)
    return parts[1] if len(parts) > 1 else "*", ".".join(parts[2:])


def _listed(there: list[Site], kind: str) -> str:
    """One line: the layers of a kind and the words that can follow them."""
    of_kind = [site for site in there if site.kind == kind]
    if not of_kind:
        return ""
    layers = dict.fromkeys(str(site.layer) for site in of_kind)
    words = dict.fromkeys(site.word for site in of_kind)
    return f"  {kind} ({', '.join(layers)}): {', '.join(words)}\n"
