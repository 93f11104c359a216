"""Check that a machine has what the spec's `needs` ask of it: GPUs, memory, and installed extras."""

from __future__ import annotations

import importlib.util

import psutil

from qwenlab.errors import NeedsNotMet
from qwenlab.experiments.plan.points import Plan
from qwenlab.experiments.sweep import provenance

EXTRAS = {"cuda": ("fla", "triton"), "ray": ("ray",), "s3": ("s3fs",), "mlflow": ("mlflow",)}
"""Extra of qwenlab -> the modules that it installs. Any other extra is the name of a module."""


def check_needs(planned: Plan, jobs: int) -> None:
    """Raise NeedsNotMet if this machine cannot run `jobs` runs at a time."""
    needs, at = planned.spec.needs, planned.source.at
    gpus, free = len(provenance.gpus()), psutil.virtual_memory().available
    if needs.gpus * jobs > gpus:
        raise NeedsNotMet(f"{at('needs', 'gpus')}: {jobs} x {needs.gpus} GPUs are needed, and this machine has {gpus}.")
    if needs.memory is not None and needs.memory * jobs > free:
        raise NeedsNotMet(
            f"{at('needs', 'memory')}: {jobs} x {needs.memory / 2**30:.1f} GiB are needed, and {free / 2**30:.1f} GiB "
            "are free here. Use fewer jobs."
        )
    for module, message in required_modules(planned).items():
        if importlib.util.find_spec(module) is None:
            raise NeedsNotMet(message)


def required_modules(planned: Plan) -> dict[str, str]:
    """Modules that the spec's extras install -> the error message for a machine without them."""
    where = planned.source.at("needs", "extras")
    return {
        module: f"{where}: {module} is not installed: pip install 'qwenlab[{extra}]'"
        for extra in planned.spec.needs.extras
        for module in EXTRAS.get(extra, (extra,))
    }
