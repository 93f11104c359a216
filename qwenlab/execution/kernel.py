"""Start, prepare and end an IPython kernel with the current Python interpreter."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any

from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient.exceptions import DeadKernelError

from qwenlab.errors import NotebookFailed

_SOCKET_PATH = 90
"""Longest path of a socket, without its number; Unix allows 107 characters in all."""


class _ThisPython(KernelSpecManager):
    """Has one kernel spec, the current interpreter, whatever "python3" is among the user's own kernels."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


class Kernel:
    """A kernel that belongs to the thread that started it, and ends with its process.

    Where Unix sockets are available, its sockets are in a folder of its own, so kernels that start at the same time
    cannot take each other's ports.
    """

    def __init__(self, cwd: Path) -> None:
        self.runs, self.first_resident = 0, 0  # notebooks begun, and bytes of memory after the first
        self._folder = Path(tempfile.mkdtemp(prefix="qwenlab-"))
        options: dict[str, Any] = dict(kernel_name="python3", kernel_spec_manager=_ThisPython())
        if os.name == "posix" and len(str(self._folder)) < _SOCKET_PATH:
            options |= dict(transport="ipc", connection_file=str(self._folder / "kernel.json"))
        self.manager = AsyncKernelManager(transport_encryption="auto", **options)
        try:
            self.client = run_sync(self._start)(cwd)
        except BaseException:
            self.close()
            raise

    async def _start(self, cwd: Path) -> Any:
        await self.manager.start_kernel(cwd=str(cwd), extra_arguments=["--HistoryManager.enabled=False"])
        client = self.manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=120)
        client.allow_stdin = False
        return client

    @property
    def pid(self) -> int:
        """The id of its process."""
        return int(self.manager.provisioner.pid)  # type: ignore[union-attr]

    @property
    def is_alive(self) -> bool:
        """Whether its process still runs."""
        return bool(run_sync(self.manager.is_alive)())

    def kill(self) -> None:
        """End it at once, from any thread. A thread that waits for it gets DeadKernelError."""
        with suppress(ProcessLookupError, AttributeError):
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it, and delete its sockets. A second call does nothing."""
        with suppress(Exception):  # it may be dead already
            run_sync(self._stop)()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _stop(self) -> None:
        with suppress(AttributeError):
            self.client.stop_channels()
        await self.manager.shutdown_kernel(now=True)

    def begin(self, seed: int, cwd: Path, environment: Mapping[str, str], warm: bool) -> dict[str, Any]:
        """Reset the kernel, and prepare it for one notebook: see `in_kernel.begin`."""
        self.runs += 1
        return self._call("begin", seed=seed, cwd=str(cwd), environment=dict(environment), warm=warm)

    def end(self) -> dict[str, Any]:
        """Restore settings, and report what the notebook used and left: see `in_kernel.end`."""
        return self._call("end")

    def _call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Call a function of `in_kernel` inside the kernel, leaving no trace in its namespace."""
        module = f"__import__('qwenlab.execution.in_kernel', fromlist=['{name}'])"
        reply = run_sync(self._evaluate)(f"{module}.{name}(**{arguments!r})")
        result = reply.get("user_expressions", {}).get("result", reply)
        if result["status"] != "ok":
            raise NotebookFailed(f"the kernel could not be prepared: {result['ename']}: {result['evalue']}")
        report: dict[str, Any] = json.loads(ast.literal_eval(result["data"]["text/plain"]))
        return report

    async def _evaluate(self, expression: str) -> dict[str, Any]:
        request = self.client.execute("", silent=True, user_expressions={"result": expression})
        while True:
            try:
                message = await self.client.get_shell_msg(timeout=1)
            except Empty:
                if not await self.manager.is_alive():
                    raise DeadKernelError("Kernel died") from None
                continue
            if message["parent_header"].get("msg_id") == request:
                content: dict[str, Any] = message["content"]
                return content
