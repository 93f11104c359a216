"""Old public names, which still work and warn. This file is deleted with the first release.

`OLD` gives the new full name of each old one. A package that is gone, such as `qwenlab.probe`,
still finds its old names.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

INTERVENTIONS = (
    "zero scale mean resample noise identity patch set_gate no_sink window freeze_state no_conv no_key_removal "
    "reset_state state_dtype force_experts mask_experts no_shared_expert shuffle_router top_k uniform_router"
)
ROOMS = {"probe": "probes", "decode": "speculative", "kernels": "execution", "runs": "experiments"}
OLD = {
    "edit": "intervene",
    "probe.edit": "intervene",
    "probe.watch": "watch",
    "probe.Edit": "interventions.Intervention",
    "probe.ValueEdit": "interventions.ValueIntervention",
    "probe.take": "interventions.cache_activations",
    "probe.Values": "interventions.ActivationCache",
    "probe.Seen": "probes.WatchSession",
    "runs.Acceptance": "recipes.AcceptanceReport",
    "plots.gate_histograms": "plots.gates",
    "plots.layer_map": "plots.layer_table",
    "plots.memory_by_context": "plots.memory",
    "plots.openness_by_token": "plots.gate_by_token",
    "plots.over_texts": "plots.mean_over_texts",
    "plots.teacher_forced": "plots.agreement",
    "stats.over_texts": "stats.mean_over_texts",
    "tasks.read": "tasks.feed",
    "decode.chains": "speculative.draft_chains",
    "decode.custom_generate": "speculative.CustomGenerate",
    "decode.Losslessness": "speculative.LosslessReport",
    "decode.Replay": "speculative.ReplayRollback",
    "decode.Rerun": "speculative.RerunRollback",
    "decode.Rule": "speculative.VerificationRule",
    **{f"probe.{old}": f"interventions.{old.title().replace('_', '')}" for old in INTERVENTIONS.split()},
    **{
        f"runs.{name}": f"recipes.{name}"
        for name in ("ablate", "Ablated", "acceptance", "trace", "demo", "Demo", "profile", "Profile")
    },
}


def with_old_names(package: str, find: Callable[[str], Any]) -> Callable[[str], Any]:
    """The `__getattr__` of a package: `find`, and before it the old names of that package."""
    room = package.partition(".")[2]

    def find_old_too(name: str) -> Any:
        if not room and name in ROOMS:
            return _OldRoom(name)
        new = OLD.get(f"{room}.{name}" if room else name)
        return find(name) if new is None else _found(f"{package}.{name}", new)

    return find_old_too


class _OldRoom:
    """A package that was renamed or divided: finds its old names where they are now."""

    def __init__(self, room: str) -> None:
        self._room = room

    def __getattr__(self, name: str) -> Any:
        return _found(f"qwenlab.{self._room}.{name}", OLD.get(f"{self._room}.{name}", f"{ROOMS[self._room]}.{name}"))


def _found(old: str, new: str) -> Any:
    room, _, name = f"qwenlab.{new}".rpartition(".")
    found = getattr(importlib.import_module(room), name)
    warnings.warn(f"{old} is now qwenlab.{new}.", DeprecationWarning, stacklevel=3)
    return found
