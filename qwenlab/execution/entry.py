"""What papermill is told of when it is imported: the engine `qwenlab`, which is itself imported only to be used.

Papermill loads entry points while it is being imported, and so, where qwenlab imports papermill, before
`qwenlab.execution.engine` has got as far as its class.
"""

from __future__ import annotations

from typing import Any


class LazyEngine:
    """Stands for `qwenlab.execution.engine.Engine`."""

    @staticmethod
    def execute_notebook(*words: Any, **settings: Any) -> Any:
        return _engine().execute_notebook(*words, **settings)

    @staticmethod
    def nb_kernel_name(*words: Any, **settings: Any) -> Any:
        return _engine().nb_kernel_name(*words, **settings)

    @staticmethod
    def nb_language(*words: Any, **settings: Any) -> Any:
        return _engine().nb_language(*words, **settings)


def _engine() -> Any:

    return LazyEngine
