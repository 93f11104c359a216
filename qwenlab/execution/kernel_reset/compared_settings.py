"""Detect changes of environment variables, hooks and settings that `captured_settings` does not restore."""

from __future__ import annotations

import gc
import locale
import os
import signal
import socket
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from operator import attrgetter
from typing import Any

from IPython.core.getipython import get_ipython

_SET_BY_LIBRARIES = {
    *("CUDA_MODULE_LOADING", "DISABLE_CUPTI_LAZY_REINIT", "NCCL_GRAPH_MIXING_SUPPORT", "TEARDOWN_CUPTI"),
    *("TOKENIZERS_PARALLELISM", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
}
"""Variables that torch and transformers set while they run. They do not change results."""

_BACKENDS = (
    *("fp32_precision", "cudnn.enabled", "cudnn.benchmark", "cudnn.deterministic", "cudnn.fp32_precision"),
    *("cudnn.conv.fp32_precision", "cudnn.rnn.fp32_precision", "cuda.matmul.fp32_precision"),
    *("cuda.matmul.allow_fp16_reduced_precision_reduction", "cuda.matmul.allow_bf16_reduced_precision_reduction"),
    *("cuda.matmul.allow_fp16_accumulation", "mkldnn.enabled", "mkldnn.deterministic", "mkldnn.matmul.fp32_precision"),
    *("mkldnn.conv.fp32_precision", "opt_einsum.enabled"),
)
"""Settings in torch.backends that change results."""

_VARIABLE = "environment: "

_GONE = object()


class ComparedSettings:
    """Values read from the process, by name. Changes by the import of a library are accepted."""

    def __init__(self) -> None:
        self._base = self._earlier = _read()

    def before_import(self) -> None:
        """Read the values before the import of a library."""
        self._earlier = _read()

    def after_import(self) -> None:
        """Accept what has changed since `before_import`."""
        now = _read()
        changed = _different(self._earlier, now)
        self._base = {name: value for name, value in self._base.items() if name not in changed}
        self._base |= {name: now[name] for name in changed if name in now}

    def changes(self, environment: Iterable[str]) -> list[str]:
        """The names of values that differ, without `environment`, the variables that were set for the notebook."""
        ignored = {f"{_VARIABLE}{name}" for name in {*environment, *_SET_BY_LIBRARIES}}
        return sorted(_different(self._base, _read()) - ignored)

    def restore_environment(self) -> None:
        """Restore every environment variable."""
        names = [name for name in self._base if name.startswith(_VARIABLE)]
        os.environ.clear()
        os.environ.update({name.removeprefix(_VARIABLE): self._base[name] for name in names})


def _different(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in {*one, *other} if one.get(name, _GONE) != other.get(name, _GONE)}


def _read() -> dict[str, Any]:
    values: dict[str, Mapping[str, Any]] = {_VARIABLE: os.environ, "hooks: ": _hooks(), "setting: ": _settings()}
    return {f"{prefix}{name}": value for prefix, named in values.items() for name, value in named.items()}


def _hooks() -> dict[str, list[Any]]:
    shell: Any = get_ipython()
    torch: Any = sys.modules["torch"]
    hooks: dict[str, list[Any]] = {
        "sys.meta_path": [*sys.meta_path],
        "sys.path_hooks": [*sys.path_hooks],
        "sys.settrace": [sys.gettrace()],
        "sys.setprofile": [sys.getprofile()],
        "gc.callbacks": [*gc.callbacks],
        "signal.signal": [signal.getsignal(number) for number in sorted(signal.valid_signals())],
        "IPython.ast_transformers": [*shell.ast_transformers],
        "IPython.input_transformers_cleanup": [*shell.input_transformers_cleanup],
        "IPython.input_transformers_post": [*shell.input_transformers_post],
        "torch.overrides.TorchFunctionMode": [*torch.overrides._get_current_function_mode_stack()],
        "torch.utils._python_dispatch.TorchDispatchMode": [
            *torch.utils._python_dispatch._get_current_dispatch_mode_stack()
        ],
        "torch.autograd.graph.saved_tensors_hooks": [torch._C._autograd._top_saved_tensors_default_hooks(True)],
    }
    for name in ("torch.nn.modules.module", "torch.optim.optimizer"):
        for attribute, value in vars(sys.modules[name]).items():
            if attribute.startswith("_global_") and isinstance(value, dict):
                hooks[f"{name}.{attribute}"] = [*value.values()]
    return hooks


def _settings() -> dict[str, Any]:
    torch: Any = sys.modules["torch"]
    settings = {
        "sys.setrecursionlimit": sys.getrecursionlimit(),
        "sys.set_int_max_str_digits": sys.get_int_max_str_digits(),
        "gc.enable": gc.isenabled(),
        "locale.setlocale": locale.setlocale(locale.LC_ALL),
        "socket.setdefaulttimeout": socket.getdefaulttimeout(),
        "torch.inference_mode": torch.is_inference_mode_enabled(),
        "torch.autograd.set_detect_anomaly": torch.is_anomaly_enabled(),
        "torch.utils.deterministic": torch.utils.deterministic.fill_uninitialized_memory,
        "torch.nn.attention.sdpa_kernel": [
            *(torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()),
            *(torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled()),
        ],
    }
    for device in ("cpu", "cuda"):
        settings[f"torch.autocast({device!r})"] = [torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)]
    for name in _BACKENDS:
        with suppress(AttributeError, RuntimeError):  # torch has no such setting, or two ways to set it were mixed
            settings[f"torch.backends.{name}"] = attrgetter(name)(torch.backends)
    return settings
