"""Random results of ablation sweeps and of patching with planted effects. No model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from qwenlab.testing.models import tiny_config

_QUESTIONS = 8  # scored tokens of a text


def made_sweep(
    *,
    seed: int = 0,
    layers: int = 8,
    of: Sequence[str] = ("mixer", "mlp"),
    slots: int = 1,
    tasks: Mapping[str, int] | None = None,
    chance: Mapping[str, float] | None = None,
    planted: Mapping[str, float] | None = None,
    spread: float = 0.05,
    controls: int = 3,
    able: Mapping[str, float] | None = None,
) -> xr.Dataset:
    """A random sweep as `qwenlab.ablations.sweep` returns it: single parts, and other parts as their controls.

    layers, of, slots  an ablation of each kind of part of each layer; more slots make "head 3.0", "head 3.1", ...
    tasks              number of texts of each task; by default 16 of code and 16 of recall
    chance             accuracy by guessing, for tasks that have one; by default 0.1 for recall
    planted            mean rise of the loss [nat/token] by name of the ablation, in all tasks; 0 for the others
    spread             standard deviation of the rise over texts [nat/token]
    controls           number of random other parts that serve as controls of each ablation
    able               clean accuracy by task; by default 0.9

    Accuracy falls as exp(-rise), towards chance; KL divergence and agreement follow it.
    """
    rng = np.random.default_rng(seed)
    texts = {"code": 16, "recall": 16} if tasks is None else dict(tasks)
    known = {"recall": 0.1} if chance is None else chance
    task = np.repeat(list(texts), list(texts.values()))
    units = _units(layers, of, slots)
    names = [str(each["ablation"]) for each in units]
    rise = rng.normal(0, spread, (len(units), len(task)))
    rise += np.array([(planted or {}).get(name, 0.0) for name in names])[:, None] * rng.gamma(16, 1 / 16, len(task))
    guess = np.array([known.get(name, np.nan) for name in task])
    at_best = np.array([(able or {}).get(name, 0.9) for name in task])
    floor = np.nan_to_num(guess)
    clean = {"clean_loss": rng.gamma(9, 0.2, len(task)), "clean_accuracy": _answered(rng, at_best)}
    values = {
        "loss": clean["clean_loss"] + rise,
        "accuracy": _answered(rng, floor + np.maximum(at_best - floor, 0) * np.exp(-np.abs(rise))),
        "kl": np.abs(rise) + rng.gamma(1, 0.001, rise.shape),
        "agreement": _answered(rng, np.exp(-np.abs(rise))),
    }
    row = list(range(len(units)))
    for place, name in enumerate(names):
        others = rng.permutation(np.delete(np.arange(len(names)), place))[:controls]
        for number, other in enumerate(others.tolist()):
            about = {"ablation": f"control {number} of {name}: {names[other]}", "control_of": name}
            units.append(units[other] | about)
            row.append(other)
    described = {"loss": "nat/token", "accuracy": "1", "kl": "nat/token", "agreement": "1"}
    variables: dict[str, Any] = {
        name: (("ablation", "text"), values[name][row], {"units": units_of, "long_name": name})
        for name, units_of in described.items()
    }
    variables |= {name: ("text", each) for name, each in (clean | {"chance": guess}).items()}
    coords: dict[str, Any] = {name: ("ablation", [each[name] for each in units]) for name in units[0]}
    coords |= {"text": np.arange(len(task)), "task": ("text", task)}
    return xr.Dataset(variables, coords, {"checkpoint": "a made model", "dtype": "float64", "seed": seed})


def made_ablated_acceptance(*, seed: int = 0, planted: float = 0.3, spread: float = 0.05, **how: Any) -> xr.Dataset:
    """Random acceptance lengths as `qwenlab.ablations.acceptance` returns them, of the ablations of `made_sweep`.

    planted  mean fall of the acceptance length [tokens] for "mixer 3"; 0 for the others
    spread   standard deviation of the fall over texts
    how      further arguments of `made_sweep`
    """
    sweep = made_sweep(seed=seed, planted={"mixer 3": planted}, spread=spread, **how)
    fall = (sweep["loss"] - sweep["clean_loss"]).values
    clean = 1 + np.random.default_rng(seed).gamma(9, 0.1, fall.shape[1])
    about = {"units": "token", "long_name": "acceptance length: emitted / rounds"}
    facts = {"rule": "greedy", "depth": 3, "policy": "fixed depth", "text": "teacher_forced", "origin": "replay"}
    variables: dict[str, Any] = {
        "acceptance_length": (("ablation", "text"), clean - fall, about),
        "clean_acceptance_length": ("text", clean, about),
    }
    kept = sweep.coords.to_dataset().drop_vars(["task", "text"]).coords
    return xr.Dataset(variables, dict(kept) | {"label": ("text", sweep["task"].values)}, sweep.attrs | facts)


def made_patching(
    *,
    seed: int = 0,
    pairs: int = 8,
    layers: int = 8,
    positions: int = 6,
    parts: Sequence[str] = ("residual",),
    planted: tuple[int, int] = (3, 2),
    share: float = 0.8,
    spread: float = 0.1,
) -> xr.Dataset:
    """Random log-probabilities as `qwenlab.ablations.patching` returns them.

    planted  layer and position of the first part where a patch restores the fraction `share` of the answer; the mean
             effect of the other patches is 0, and before that position, where the texts are equal, every effect is 0
    spread   standard deviation of the restored fraction over pairs
    """
    rng = np.random.default_rng(seed)
    target = -rng.gamma(9, 1, pairs)
    source = target + rng.gamma(16, 0.5, pairs)
    sites = [(part, layer) for part in parts for layer in range(layers)]
    gained = rng.normal(0, spread, (len(sites), positions, pairs))
    gained[planted[0], planted[1]] += share
    gained[:, : planted[1]] = 0
    kinds = tiny_config(layers=layers).layer_types
    tokens = np.array([[f" {chr(97 + at % 26)}" for at in range(positions)]] * pairs, object)
    other = tokens.copy()
    tokens[:, planted[1]], other[:, planted[1]] = np.arange(pairs).astype(str), "x"
    about = {"units": "nat", "long_name": "log-probability of the source's answer"}
    return xr.Dataset(
        {
            "logprob": (("site", "position", "pair"), target + gained * (source - target), about),
            "source_logprob": ("pair", source, about),
            "target_logprob": ("pair", target, about),
        },
        {
            "site": [f"layers.{layer}.{part}" for part, layer in sites],
            "layer": ("site", [layer for _, layer in sites]),
            "kind": ("site", [kinds[layer] for _, layer in sites]),
            "position": ("position", np.arange(positions), {"units": "token"}),
            "source_token": (("pair", "position"), tokens),
            "target_token": (("pair", "position"), other),
        },
        {"checkpoint": "a made model", "dtype": "float64", "heads": "", "seed": seed},
    )


def _units(layers: int, of: Sequence[str], slots: int) -> list[dict[str, Any]]:
    """The coordinates of each ablation."""
    found = []
    kinds = tiny_config(layers=layers).layer_types
    for part in of:
        for layer, slot in np.ndindex(layers, slots):
            name = f"{part} {layer}" + (f".{slot}" if slots > 1 else "")
            about = {"ablation": name, "unit": part, "layer": layer, "kind": kinds[layer], "control_of": ""}
            found.append(about | {"intervention": f"Zero('layers.{layer}.{part}')", "parameters": 1000 + 10 * layer})
    return found


def _answered(rng: np.random.Generator, probability: np.ndarray) -> np.ndarray:
    """The fraction of a text's questions with a right answer."""
    return rng.binomial(_QUESTIONS, np.clip(probability, 0, 1)) / _QUESTIONS
