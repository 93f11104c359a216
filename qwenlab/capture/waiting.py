"""Hidden states that wait for their turn: those within a budget in memory, the others in files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Hashable, Sequence
from types import TracebackType

import numpy as np
import torch

from qwenlab.errors import DiskFull


class WaitingTensors:
    """Context manager that holds the tensors of calls that wait, by call; it deletes its files in the end.

    budget  bytes that may wait in memory, None for any number. A call that would exceed it waits in a file. Calls take
            their turns in one order, so those that began to wait first come next and stay in memory
    folder  where the files are; by default the system's folder for temporary files
    """

    def __init__(self, budget: int | None, folder: str | os.PathLike[str] | None) -> None:
        self._budget, self._folder = budget, tempfile.gettempdir() if folder is None else os.fspath(folder)
        self._files: tempfile.TemporaryDirectory[str] | None = None
        self.in_memory = 0  # bytes
        self._bytes: dict[Hashable, int] = {}  # in memory, by call
        self._names: dict[Hashable, str] = {}  # of the file of each call
        self._spilled: dict[Hashable, tuple[str, list[tuple[torch.UntypedStorage, int]]]] = {}

    def __enter__(self) -> WaitingTensors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spilled.clear()
        if self._files is not None:
            self._files.cleanup()

    @property
    def in_files(self) -> int:
        """Bytes that wait in files."""
        return sum(size for _, storages in self._spilled.values() for _, size in storages)

    def put(self, call: Hashable, own: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> None:
        """Let a call wait. Raises DiskFull.

        own     its tensors that may be written to a file and freed, unless somebody else uses their memory
        others  its other tensors: they are counted, and stay in memory
        """
        storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in (*own, *others)}
        known = Counter(tensor.untyped_storage()._cdata for tensor in own)
        # Each tensor and this one Python object count as users of a storage.
        free = [at for at, users in known.items() if torch._C._storage_Use_Count(at) == users + 1]
        total, spillable = (sum(storages[at].nbytes() for at in which) for which in (storages, free))
        if self._budget is not None and spillable and self.in_memory + total > self._budget:
            self._spill(call, [storages[at] for at in free], spillable)
            total -= spillable
        self._bytes[call] = total
        self.in_memory += total

    def take(self, call: Hashable) -> None:
        """Let a call go on: its tensors are in memory again."""
        self.in_memory -= self._bytes.pop(call, 0)
        path, storages = self._spilled.pop(call, ("", []))
        start = 0
        for storage, size in storages:
            storage.resize_(size)
            _bytes_of(storage).copy_(torch.from_numpy(np.fromfile(path, np.uint8, size, offset=start)))
            start += size

    def _spill(self, call: Hashable, storages: list[torch.UntypedStorage], size: int) -> None:
        """Write storages to a file and free their memory."""
        try:
            if self._files is None:
                self._files = tempfile.TemporaryDirectory(prefix="qwenlab-", dir=self._folder)
            path = os.path.join(self._files.name, self._names.setdefault(call, str(len(self._names))))
            if (free := shutil.disk_usage(self._files.name).free) < size:
                raise OSError(f"{free:,} bytes are free")
            with open(path, "wb") as file:
                for storage in storages:
                    # A copy, since torch never again frees memory that NumPy has seen.
                    _bytes_of(storage).to("cpu", copy=True).numpy().tofile(file)
        except OSError as error:
            raise DiskFull(
                f"{size:,} bytes of a hidden state that waits cannot be written to {self._folder}: {error}.\n"
                "Name a folder on a larger disk, allow more memory, or run fewer texts at a time."
            ) from error
        self._spilled[call] = path, [(storage, storage.nbytes()) for storage in storages]
        for storage in storages:
            storage.resize_(0)


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    """Return uint8 [byte]: a tensor over a whole storage."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
