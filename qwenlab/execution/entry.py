"""The entry point that papermill loads for its engine `qwenlab`; it imports the engine when it is first used.

Papermill loads entry points while it is being imported. Where qwenlab imports papermill, that is before the module
`qwenlab.execution.engine` has defined its class.
"""

from __future__ import annotations

from typing import Any


class _Forward(type):
    def __getattr__(cls, name: str) -> Any:
        from qwenlab.execution.engine import Engine

        return getattr(Engine, name)


class LazyEngine(metaclass=_Forward):
    """Has the attributes of `qwenlab.execution.engine.Engine`."""
