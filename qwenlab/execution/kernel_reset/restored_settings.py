"""Capture and restore settings of the process and of libraries that a notebook may change."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import copy
from functools import partial
from typing import Any

from IPython.core.getipython import get_ipython

from qwenlab.checkpoint.families import FAMILIES

COMMON = (
    *("torch", "transformers", "numpy", "scipy.stats", "pandas", "xarray", "matplotlib.pyplot"),
    "qwenlab.experiments.record",
)
"""Imported before the first notebook of a warm kernel, so that no notebook changes how they are imported."""

PACKAGES = ("checkpoint", "tasks", "record", "probes", "interventions", "speculative", "ablations", "stats", "plots")
"""Packages of qwenlab that are imported with them, file by file."""

_PANDAS = ("compute", "display", "io", "mode", "plotting", "styler")


def captured_settings() -> list[Callable[[], object]]:
    """Import the common libraries, and capture their settings; returns the functions that restore these."""
    for name in (*COMMON, *_modules_to_import()):
        with suppress(ImportError):
            importlib.import_module(name)
    # Both are initialised when they are first used, which must not be in a notebook.
    sys.modules["matplotlib.pyplot"].switch_backend(sys.modules["matplotlib"].get_backend())
    if (torch := sys.modules["torch"]).cuda.is_available():
        torch.cuda.init()
    return [_of_the_process(), *_of_torch(), *_of_the_libraries()]


def _modules_to_import() -> Iterator[str]:
    """The modules of qwenlab's packages, and the modeling modules of transformers that it supports."""
    for name in PACKAGES:
        package = importlib.import_module(f"qwenlab.{name}")
        yield from (module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))
    yield from (family.modeling for family in FAMILIES.values())


def _of_the_process() -> Callable[[], object]:
    shell: Any = get_ipython()
    path, argv = list(sys.path), list(sys.argv)
    filters, level, handlers = list(warnings.filters), logging.root.level, list(logging.root.handlers)
    callbacks = {name: list(functions) for name, functions in shell.events.callbacks.items()}

    def restore() -> None:
        sys.path[:], sys.argv[:], warnings.filters[:] = path, argv, filters  # type: ignore[index]
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
        for name, functions in callbacks.items():
            shell.events.callbacks[name][:] = functions

    return restore


def _of_torch() -> list[Callable[[], object]]:
    torch: Any = sys.modules["torch"]
    return [
        partial(torch.set_num_threads, torch.get_num_threads()),
        partial(torch.set_default_dtype, torch.get_default_dtype()),
        partial(torch.set_grad_enabled, torch.is_grad_enabled()),
        partial(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled()),
        partial(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()),
        partial(torch.set_default_device, None),
    ]


def _of_the_libraries() -> list[Callable[[], object]]:
    numpy, xarray, matplotlib = (sys.modules[name] for name in ("numpy", "xarray", "matplotlib"))
    pandas, logs = sys.modules["pandas"], sys.modules["transformers"].logging
    rc, backend = copy(matplotlib.rcParams), matplotlib.get_backend()

    def restore_pandas() -> None:
        with warnings.catch_warnings():  # some options are deprecated
            warnings.simplefilter("ignore")
            for group in _PANDAS:
                pandas.reset_option(rf"^{group}\.")

    def restore_figures() -> None:
        if matplotlib.get_backend() != backend:
            sys.modules["matplotlib.pyplot"].switch_backend(backend)
        matplotlib.rcParams.clear()
        dict.update(matplotlib.rcParams, rc)

    return [
        partial(numpy.seterr, **numpy.geterr()),
        partial(numpy.set_printoptions, **numpy.get_printoptions()),
        partial(xarray.set_options, **xarray.get_options()),
        partial(logs.set_verbosity, logs.get_verbosity()),
        restore_figures,
        restore_pandas,
    ]
