"""Write files atomically: to a temporary file in the same folder, which then replaces the target."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Context manager that yields a temporary path, and moves it to `path` at the end, or deletes it on an error.

    Creates the folder. A process that is killed inside may leave `.NAME.*.part` behind, never half of `path`.
    """
    target = Path(path).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid4().hex}.part")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
