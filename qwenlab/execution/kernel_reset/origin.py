"""Decide whether a module or code belongs to an installed library or to a notebook."""

from __future__ import annotations

import site
import sys
import sysconfig
from functools import cache, lru_cache, partial
from inspect import getattr_static
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

_MAIN = ("__main__", "__mp_main__")
"""Names of the module in which a notebook's cells run."""

_libraries = {
    Path(folder).resolve()
    for folder in {
        *sysconfig.get_paths().values(),
        *site.getsitepackages(),
        site.getusersitepackages(),
        sys.prefix,
        sys.base_prefix,
        str(Path(__file__).parents[2]),
    }
}
"""Folders and files of this Python, of installed packages, and of qwenlab."""


def add_libraries() -> None:
    """Count all modules that are imported now as libraries, wherever they are. Called before the first notebook."""
    for name, module in [*sys.modules.items()]:
        if "." not in name and name not in _MAIN and not is_library(module):
            names = _names_of(module)
            _libraries.update(Path(path).resolve() for path in names.get("__path__") or [names["__file__"]])
    is_installed.cache_clear()


@cache
def is_installed(path: str) -> bool:
    """Whether a file or folder belongs to a library."""
    resolved = Path(path).resolve()
    return any(resolved.is_relative_to(folder) for folder in _libraries)


def is_library(module: Any) -> bool:
    """Whether a module stays in `sys.modules` from one notebook to the next: it is built in or installed."""
    names = _names_of(module)
    if names.get("__name__") in _MAIN:
        return False
    if file := names.get("__file__"):
        return is_installed(file)
    return all(is_installed(folder) for folder in names.get("__path__") or ())  # a package without __init__.py


def is_code(value: Any) -> bool:
    """Whether a value can run: a function, a class, a descriptor such as a property, an object with `__call__`."""
    kind: Any = type(value)
    return _is_code_type(kind)


@lru_cache(maxsize=4096)
def _is_code_type(kind: type) -> bool:
    return any("__call__" in vars(base) or "__get__" in vars(base) for base in kind.__mro__)


def functions_in(value: Any) -> list[FunctionType]:
    """The Python functions that a function, a method or a property of a class runs."""
    match value:
        case FunctionType():
            return [value]
        case staticmethod() | classmethod():
            return functions_in(value.__func__)
        case property():
            return [part for part in (value.fget, value.fset, value.fdel) if isinstance(part, FunctionType)]
    return []


def is_foreign(value: Any) -> bool:
    """Whether code comes from a notebook or from a module in its folder, not from a library."""
    match value:
        case FunctionType() if _is_foreign_namespace(value.__globals__):
            return True
        case MethodType() | staticmethod() | classmethod():
            return is_foreign(value.__func__)
        case property():
            return any(map(is_foreign, (value.fget, value.fset, value.fdel)))
        case partial():
            return any(map(is_foreign, (value.func, *value.args, *value.keywords.values())))
        case type():
            return _is_foreign_namespace(_names_of(sys.modules.get(str(value.__module__))))
    wrapped = getattr_static(value, "__wrapped__", None)  # of functools.wraps and functools.cache
    return is_foreign(type(value)) or (wrapped is not None and is_foreign(wrapped))


def _is_foreign_namespace(names: dict[str, Any]) -> bool:
    """Whether globals are a notebook's. Globals without a module are those of code that a library generated."""
    if names.get("__name__") in _MAIN:
        return True
    file = names.get("__file__")
    return isinstance(file, str) and not is_installed(file)


def _names_of(module: Any) -> dict[str, Any]:
    return vars(module) if isinstance(module, ModuleType) else {}
