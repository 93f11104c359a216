"""Where decode steps under the default probes spend their time: calls of wrappers, and shares by group of functions."""

from __future__ import annotations

import cProfile
import pstats
from contextlib import ExitStack
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.variants import default_probes

WRAPPERS = ("capture/wrapping.py", "capture/running_layers.py")
HOOKS = ("capture/hooks.py", "capture/delta_rule.py", "capture/attention.py")
STOPWATCH = ("timing/stopwatch.py",)
SESSION = (
    "probes/session.py",
    "capture/model_passes.py",
    "capture/sequences.py",
    "capture/token_ids.py",
    "capture/generate_calls.py",
)
DISPATCH = ("probes/dispatch.py",)

Function = tuple[str, int, str]
"""Its file, line and name, as in `pstats`."""


def decode_shares(model: PreTrainedModel, tokens: int = 64) -> dict[str, Any]:
    """Calls of wrappers per decode step, and milliseconds and shares of all steps by group, under cProfile.

    The profiler slows down Python code but not torch, so the shares are upper bounds: compare them with each other.
    """
    for steps in (2, tokens):  # the first time warms up
        profile = profiled_decode(model, steps)
    total, groups = pstats.Stats(profile).total_tt, milliseconds(profile)  # type: ignore[attr-defined]
    return {
        "steps": tokens,
        "wrapped calls per step": wrapped_calls(profile) / tokens,
        "milliseconds": {"all": 1000 * total} | groups,
        "shares": {name: value / (1000 * total) for name, value in groups.items()},
    }


def profiled_decode(model: PreTrainedModel, tokens: int) -> cProfile.Profile:
    """The profile of entering the default probes, `tokens` decode steps and leaving; a prefill of 512 is left out."""
    profile, ids = cProfile.Profile(), torch.full((1, 512), 3, device=model.device)
    with torch.no_grad(), ExitStack() as watching:
        profile.enable()
        watching.enter_context(default_probes(model))
        profile.disable()
        out = model(ids, use_cache=True, logits_to_keep=1)
        profile.enable()
        for _ in range(tokens):
            out = model(ids[:, :1], past_key_values=out.past_key_values, use_cache=True)
        watching.close()
        profile.disable()
    return profile


def wrapped_calls(profile: cProfile.Profile) -> int:
    """Number of calls of the wrappers around modules and functions."""
    return sum(calls for function, calls, _, _ in _functions(profile, WRAPPERS) if function[2] == "__call__")


def milliseconds(profile: cProfile.Profile) -> dict[str, float]:
    """Milliseconds by group, with what its functions call; what another group does is left out."""

    def spent(files: tuple[str, ...], by: tuple[str, ...] = ("",), name: str = "") -> float:
        """Milliseconds of the functions of `files`, or of this one, in calls by functions of `by`."""
        return 1000 * sum(
            times[3]
            for function, _, _, callers in _functions(profile, files)
            if name in ("", function[2]) and function[2] not in _RUNNING  # which have the whole model inside
            for caller, times in callers.items()
            if caller[0].endswith(by)
        )

    own = sum(seconds for function, _, seconds, _ in _functions(profile, WRAPPERS) if function[2] in _RUNNING)
    timed = spent(STOPWATCH, by=SESSION)
    block = spent(SESSION, name="__enter__") + spent(SESSION, name="__exit__")
    return {
        "wrappers' own calls": 1000 * own,
        "capture hooks": spent(HOOKS, by=WRAPPERS),
        "stopwatch": spent(STOPWATCH, by=WRAPPERS) + timed,
        "session": spent(SESSION, by=WRAPPERS) - timed - spent(DISPATCH, by=DISPATCH, name="flush"),
        "reduce and accumulate": spent(DISPATCH, name="flush"),
        "enter and leave": block - spent(DISPATCH, by=SESSION, name="flush"),
    }


_RUNNING = ("__call__", "_run_changed", "run")
"""What runs at every wrapped call, of the files of WRAPPERS."""


def _functions(
    profile: cProfile.Profile, files: tuple[str, ...]
) -> list[tuple[Function, int, float, dict[Function, Any]]]:
    """Every function of these files that ran: its calls, its own seconds, and its callers."""
    found = pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    return [(name, calls, own, callers) for name, (_, calls, own, _, callers) in found if name[0].endswith(files)]
