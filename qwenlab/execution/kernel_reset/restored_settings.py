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


class RestoredSettings:
    """The captured settings of the process and of the libraries that notebooks use."""

    def __init__(self, restorers: list[Callable[[], object]]) -> None:
        self._restorers = restorers

    @classmethod
    def capture(cls) -> RestoredSettings:
        """Import the common libraries, and capture every setting that `restore` restores."""
        for name in (*COMMON, *_modules_to_import()):
            with suppress(ImportError):
                importlib.import_module(name)
        _use_once()
        return cls([*_of_the_process(), *_of_torch(), *_of_the_libraries(), *_of_the_shell()])

    def restore(self) -> None:
        """Restore everything that was captured."""
        for restore in self._restorers:
            restore()


def _modules_to_import() -> Iterator[str]:
    """The modules of qwenlab's packages, and the modeling modules of transformers that it supports."""
    for name in PACKAGES:
        package = importlib.import_module(f"qwenlab.{name}")
        yield from (module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."))
    yield from (family.modeling for family in FAMILIES.values())


def _use_once() -> None:
    """Trigger the one-time initialisation of matplotlib's backend and of CUDA before the first notebook."""
    torch, pyplot = sys.modules["torch"], sys.modules["matplotlib.pyplot"]
    pyplot.switch_backend(sys.modules["matplotlib"].get_backend())
    if torch.cuda.is_available():
        torch.cuda.init()


def _of_the_process() -> list[Callable[[], object]]:
    path, argv = list(sys.path), list(sys.argv)
    filters, level, handlers = list(warnings.filters), logging.root.level, list(logging.root.handlers)

    def restore() -> None:
        sys.path[:], sys.argv[:], warnings.filters[:] = path, argv, filters  # type: ignore[index]
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)

    return [restore]


def _of_torch() -> list[Callable[[], object]]:
    torch: Any = sys.modules["torch"]
    pairs = (
        (torch.set_num_threads, torch.get_num_threads()),
        (torch.set_default_dtype, torch.get_default_dtype()),
        (torch.set_grad_enabled, torch.is_grad_enabled()),
        (torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled()),
        (torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()),
        (torch.set_default_device, None),
    )
    return [partial(setter, value) for setter, value in pairs]


def _of_the_libraries() -> list[Callable[[], object]]:
    numpy, xarray, matplotlib = (sys.modules[name] for name in ("numpy", "xarray", "matplotlib"))
    pandas, logs = sys.modules["pandas"], sys.modules["transformers"].logging
    errors, options, printing = numpy.geterr(), dict(xarray.get_options()), numpy.get_printoptions()
    rc, verbosity, backend = copy(matplotlib.rcParams), logs.get_verbosity(), matplotlib.get_backend()

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
        lambda: numpy.seterr(**errors),
        lambda: numpy.set_printoptions(**printing),
        lambda: xarray.set_options(**options),
        restore_figures,
        restore_pandas,
        lambda: logs.set_verbosity(verbosity),
    ]


def _of_the_shell() -> list[Callable[[], object]]:
    shell: Any = get_ipython()
    callbacks = {name: list(functions) for name, functions in shell.events.callbacks.items()}

    def restore() -> None:
        for name, functions in callbacks.items():
            shell.events.callbacks[name][:] = functions

    return [restore]
