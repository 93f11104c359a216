"""One IPython kernel of the Python running now: started, asked, and ended; for one notebook, or kept for many."""

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
"""Characters that the path of a socket may have, its number aside; Unix allows 107 in all."""


class _ThisPython(KernelSpecManager):
    """Knows one kernel, the interpreter running now, whatever "python3" stands for in the user's own kernels."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


class Kernel:
    """A kernel that belongs to the thread that started it.

    runs            notebooks begun in it so far
    first_resident  bytes it held after the first of them

    It is reached over sockets in a folder of its own, where Unix allows, so kernels that start at the same time cannot
    take each other's ports. It ends when the process that started it does.
    """

    def __init__(self, cwd: Path) -> None:
        self.runs, self.first_resident = 0, 0
        self._folder = Path(tempfile.mkdtemp(prefix="qwenlab-"))
        plain: dict[str, Any] = dict(kernel_name="python3", kernel_spec_manager=_ThisPython())
        if os.name == "posix" and len(str(self._folder)) < _SOCKET_PATH:
            plain |= dict(transport="ipc", connection_file=str(self._folder / "kernel.json"))
        self.manager = AsyncKernelManager(transport_encryption="auto", **plain)
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
        """Of its process."""
        return int(self.manager.provisioner.pid)  # type: ignore[union-attr]

    @property
    def is_alive(self) -> bool:
        """Whether its process still runs."""
        return bool(run_sync(self.manager.is_alive)())

    def kill(self) -> None:
        """End it at once, from any thread: whoever waits for it gets DeadKernelError."""
        with suppress(ProcessLookupError, AttributeError):
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """End it, and remove what it was reached by. Twice does nothing."""
        with suppress(Exception):  # one that has died already is ended too
            run_sync(self._stop)()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _stop(self) -> None:
        with suppress(AttributeError):
            self.client.stop_channels()
        await self.manager.shutdown_kernel(now=True)

    def begin(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Make the kernel as good as new, and set it up for one notebook: see `inside.begin`."""
        self.runs += 1
        return self._ask("begin", json.dumps(dict(settings)))

    def end(self) -> dict[str, Any]:
        """What the notebook left and used: see `inside.end`."""
        return self._ask("end")

    def _ask(self, name: str, *words: str) -> dict[str, Any]:
        """Call a function of `inside` in the kernel, leaving no trace in its namespace."""
        call = f"__import__('qwenlab.execution.in_kernel', fromlist=['inside']).{name}({', '.join(map(repr, words))})"
        reply = run_sync(self._reply)(call)
        answer = reply.get("user_expressions", {}).get("answer", reply)
        if answer["status"] != "ok":
            raise NotebookFailed(f"the kernel could not be made ready: {answer['ename']}: {answer['evalue']}")
        found: dict[str, Any] = json.loads(ast.literal_eval(answer["data"]["text/plain"]))
        return found

    async def _reply(self, expression: str) -> dict[str, Any]:
        asked = self.client.execute("", silent=True, user_expressions={"answer": expression})
        while True:
            try:
                message = await self.client.get_shell_msg(timeout=1)
            except Empty:
                if not await self.manager.is_alive():
                    raise DeadKernelError("Kernel died") from None
                continue
            if message["parent_header"].get("msg_id") == asked:
                content: dict[str, Any] = message["content"]
                return content
