"""Reference values of each probe, summed in plain loops over tokens from the float64 layers of `by_hand`.

Each function returns a dict of arrays, with the names and dims of the recording.
"""

from dataclasses import dataclass

import numpy as np

from tests.probes.by_hand import Layer

FOLDS = 8
EDGES = {
    "unit": np.arange(128) / 128,
    "half_life": 2.0 ** (-6 + np.arange(160) / 5),
    "distance": np.array([0, 1, 2, 3, *(2**o * s for o in range(2, 26) for s in (1, 1.5)), 2**26]),
}
WINDOWS = (2, 4, 8, 16, 32, 64, 128)


@dataclass
class Text:
    """A text that was read from token `first` on; `label` has the label of each token, as an integer."""

    layers: list[Layer]
    number: int  # in reading order
    label: list[int]
    first: int = 0

    @property
    def read(self):
        return range(self.first, len(self.label))

    def group(self, token):
        """Label and fold of a token."""
        return self.label[token], self.number % FOLDS


def labels_of(texts):
    return 1 + max(max(text.label) for text in texts)


def layers_where(texts, wanted):
    return [index for index, layer in enumerate(texts[0].layers) if wanted(layer)]


def measured(token, every, text):
    """Return whether a token is the sampled one of its block of `every` tokens in this text."""
    block = token // every
    place = (0x80000000 + block * 0x9E3779B9 + text.number * 0x6A09E667) % 2**32
    return token == every * block + place * every // 2**32


def deltanet(texts, every=1):
    """With the prediction and the state of every head."""
    where = layers_where(texts, lambda layer: layer.kind == "linear_attention")
    heads, (key_heads, channels) = sizes(texts, where[0], "beta"), sizes(texts, where[0], "key")
    grouped, labels = (labels_of(texts), FOLDS, len(where)), labels_of(texts)
    sums = ("beta", "alpha", "log_alpha", "gate", "update_norm", "error_ratio", "state_norm")
    out = {f"{name}_sum": np.zeros((*grouped, *heads)) for name in sums}
    out |= {name: np.zeros(grouped) for name in ("tokens", "sequences")}
    out |= {"error_tokens": np.zeros((*grouped, *heads)), "half_life_hist": np.zeros((labels, len(where), *heads, 160))}
    out |= {f"{name}_hist": np.zeros((labels, len(where), *heads, 128)) for name in ("beta", "gate")}
    out["key_moment"] = np.zeros((labels, len(where), key_heads, channels, channels))
    for text in texts:
        for index, layer in enumerate(where):
            mixer = text.layers[layer].mixer
            for token in text.read:
                if not measured(token, every, text):
                    continue
                label, fold = text.group(token)
                out["tokens"][label, fold, index] += 1
                for head in range(*heads):
                    place, bins = (label, fold, index, head), (label, index, head)
                    beta, g, gate = (mixer[name][token, head] for name in ("beta", "g", "mean_gate"))
                    for name, value in (("beta", beta), ("alpha", np.exp(g)), ("log_alpha", g), ("gate", gate)):
                        out[f"{name}_sum"][place] += value
                    count(out["beta_hist"][bins], beta, EDGES["unit"] * mixer["largest_beta"])
                    count(out["gate_hist"][bins], gate, EDGES["unit"])
                    count(out["half_life_hist"][bins], np.log(0.5) / g, EDGES["half_life"])
                    out["error_tokens"][place] += 1
                    for name in ("update_norm", "error_ratio"):
                        out[f"{name}_sum"][place] += mixer[name][token, head]
                for head in range(key_heads):
                    key = mixer["key"][token, head]
                    out["key_moment"][label, index, head] += np.outer(key, key)
            label, fold = text.group(text.read[-1])
            out["sequences"][label, fold, index] += 1
            out["state_norm_sum"][label, fold, index] += mixer["state_norm"][text.read[-1]]
    return out


def attention(texts, every):
    where = layers_where(texts, lambda layer: layer.kind == "full_attention")
    heads, gated = sizes(texts, where[0], "probability")[0], "mean_gate" in texts[0].layers[where[0]].mixer
    grouped, labels = (labels_of(texts), FOLDS, len(where)), labels_of(texts)
    sums = ("entropy", "first_mass", "previous_mass", "self_mass", "distance", *(["gate"] if gated else []))
    out = {f"{name}_sum": np.zeros((*grouped, heads)) for name in sums}
    out["tokens"] = np.zeros(grouped)
    out |= {"gate_hist": np.zeros((labels, len(where), heads, 128))} if gated else {}
    out["distance_mass"] = np.zeros((labels, len(where), heads, len(EDGES["distance"])))
    for text in texts:
        for index, layer in enumerate(where):
            mixer = text.layers[layer].mixer
            for token in text.read:
                if not measured(token, every, text):
                    continue
                label, fold = text.group(token)
                out["tokens"][label, fold, index] += 1
                for head in range(heads):
                    if gated:
                        gate = mixer["mean_gate"][token, head]
                        out["gate_sum"][label, fold, index, head] += gate
                        count(out["gate_hist"][label, index, head], gate, EDGES["unit"])
                    p = mixer["probability"][token, head, : token + 1]
                    row = {
                        "entropy": -sum(x * np.log(x) for x in p if x > 0),
                        "first_mass": p[0],
                        "previous_mass": p[token - 1] if token else 0,
                        "self_mass": p[token],
                        "distance": sum(x * (token - key) for key, x in enumerate(p)),
                    }
                    for name, value in row.items():
                        out[f"{name}_sum"][label, fold, index, head] += value
                    for key, x in enumerate(p):
                        count(out["distance_mass"][label, index, head], token - key, EDGES["distance"], x)
    return out


def routing(texts, every=1):
    where = layers_where(texts, lambda layer: layer.mlp)
    experts = texts[0].layers[where[0]].mlp["probability"].shape[1]
    grouped = (labels_of(texts), FOLDS, len(where))
    plain = ("entropy", "topk_entropy", "margin", "repeated", "shared_gate", "shared_share")
    out = {f"{name}_sum": np.zeros(grouped) for name in plain} | {
        n: np.zeros(grouped) for n in ("tokens", "pairs", "measured")
    }
    out |= {name: np.zeros((*grouped, experts)) for name in ("load", "weight_sum")}
    out |= {name: np.zeros((*grouped, len(WINDOWS))) for name in ("distinct_sum", "windows")}
    out |= {name: np.zeros((len(where), experts, experts)) for name in ("coactivation", "transition")}
    for text in texts:
        for index, layer in enumerate(where):
            mlp = text.layers[layer].mlp
            chosen = [set(top) for top in mlp["chosen"]]
            for token in text.read:
                place = (*text.group(token), index)
                p, w, top = mlp["probability"][token], mlp["weights"][token], mlp["chosen"][token]
                ranked = [*sorted(p, reverse=True), 0]
                out["tokens"][place] += 1
                if measured(token, every, text):
                    out["measured"][place] += 1
                    out["entropy_sum"][place] -= sum(x * np.log(x) for x in p)
                    out["topk_entropy_sum"][place] -= sum(x * np.log(x) for x in w)
                    out["margin_sum"][place] += ranked[len(top) - 1] - ranked[len(top)]
                    out["shared_gate_sum"][place] += mlp["shared_gate"][token]
                    out["shared_share_sum"][place] += mlp["shared_share"][token]
                for expert, weight in zip(top, w, strict=True):
                    out["load"][(*place, expert)] += 1
                    out["weight_sum"][(*place, expert)] += weight
                    for other in top:
                        out["coactivation"][index, expert, other] += 1
                if index + 1 < len(where):
                    after = text.layers[where[index + 1]].mlp["chosen"][token]
                    out["transition"][index, top[0], after[0]] += 1
                if token > text.first:
                    out["pairs"][place] += 1
                    out["repeated_sum"][place] += len(chosen[token] & chosen[token - 1])
                for column, length in enumerate(WINDOWS):
                    if (token + 1) % length == 0 and token + 1 - length >= text.first:
                        out["windows"][(*place, column)] += 1
                        out["distinct_sum"][(*place, column)] += len(
                            set().union(*chosen[token + 1 - length : token + 1])
                        )
    return out


def residual(texts, every=1):
    grouped = (labels_of(texts), FOLDS, len(texts[0].layers))
    out = {f"{name}_sum": np.zeros((*grouped, 2)) for name in ("norm", "stream_norm", "ratio", "cosine")}
    out["tokens"] = np.zeros(grouped)
    for text in texts:
        for index, layer in enumerate(text.layers):
            for token in text.read:
                if not measured(token, every, text):
                    continue
                place = (*text.group(token), index)
                out["tokens"][place] += 1
                for column, part in enumerate(("mixer", "mlp")):
                    added, stream = layer.added[part][token], layer.stream[part][token]
                    size, before = np.linalg.norm(added), np.linalg.norm(stream)
                    out["norm_sum"][(*place, column)] += size
                    out["stream_norm_sum"][(*place, column)] += before
                    out["ratio_sum"][(*place, column)] += size / before
                    out["cosine_sum"][(*place, column)] += added @ stream / (size * before)
    return out


def maps(texts, tokens, kind, every, heads=None):
    """Statistics of rows of weights, as both probes of maps tell them; `tokens` are the ids of each text."""
    where = layers_where(texts, lambda layer: layer.kind == kind)
    implicit = kind == "linear_attention"
    gated = not implicit and "gated_norm" in texts[0].layers[where[0]].mixer
    heads = range(*sizes(texts, where[0], "value_norm")) if heads is None else heads
    grouped = (labels_of(texts), FOLDS, len(where))
    names = ("mass", "first_mass", "previous_mass", "self_mass", "distance", "entropy", "induction", "induction_even")
    names += (
        "first_even",
        "output",
        "output_first",
        *(("negative",) if implicit else ("gated_output", "gated_output_first", "mean_gate") if gated else ()),
    )
    out = {f"{name}_sum": np.zeros((*grouped, len(heads))) for name in names}
    out |= {name: np.zeros(grouped) for name in ("tokens", "induction_rows")}
    out["distance_mass"] = np.zeros((*grouped, len(heads), len(EDGES["distance"])))
    for text, ids in zip(texts, tokens, strict=True):
        for index, layer in enumerate(where):
            mixer = text.layers[layer].mixer
            for token in text.read:
                if not measured(token, every, text):
                    continue
                place = (*text.group(token), index)
                again = [key for key in range(1, token) if ids[key - 1] == ids[token]]
                out["tokens"][place] += 1
                out["induction_rows"][place] += bool(again)
                for column, head in enumerate(heads):
                    weight = mixer["weight" if implicit else "probability"][token, head, : token + 1]
                    size, norm = abs(weight), mixer["value_norm"][: token + 1, head]
                    share = size / size.sum()
                    row = {
                        "mass": size.sum(),
                        "first_mass": share[0],
                        "first_even": 1 / (token + 1),
                        "previous_mass": share[token - 1] if token else 0,
                        "self_mass": share[token],
                        "distance": sum(x * (token - key) for key, x in enumerate(share)),
                        "entropy": -sum(x * np.log(x) for x in share if x > 0),
                        "negative": share[weight < 0].sum(),
                        "induction": share[again].sum(),
                        "induction_even": len(again) / (token + 1),
                        "output": size @ norm,
                        "output_first": size[0] * norm[0],
                    }
                    if gated:
                        behind = size * mixer["gated_norm"][token, head, : token + 1]
                        row |= {"gated_output": behind.sum(), "gated_output_first": behind[0]}
                        row["mean_gate"] = mixer["mean_gate"][token, head]
                    for name in names:
                        out[f"{name}_sum"][(*place, column)] += row[name]
                    edges = [*EDGES["distance"], np.inf]
                    mass, _ = np.histogram(token - np.arange(token + 1), edges, weights=share)
                    out["distance_mass"][(*place, column)] += mass
    return out


def sizes(texts, layer, name):
    return texts[0].layers[layer].mixer[name].shape[1:]


def count(bins, value, edges, weight=1):
    """Add to the bin whose lower edge is the last one not above the value; beyond the ends, to the end bins."""
    bins[np.clip(np.searchsorted(edges, value, side="right") - 1, 0, len(edges) - 1)] += weight
