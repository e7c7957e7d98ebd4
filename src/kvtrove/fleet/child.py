"""The process that serves one model, behind a socket that only this user can reach."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import httpx

from kvtrove.fleet.models_file import ModelEntry

log = logging.getLogger(__name__)

State = Literal["asleep", "unloaded", "loading", "ready", "stopping", "failed"]
START_TIMEOUT, STOP_TIMEOUT = 900.0, 90.0  # seconds
LAST_WORDS = 2000  # bytes of a process's output that a failure reports


class Child:
    """asleep: the next request loads it. unloaded: only an administrator does. failed: it did not start.

    A process of its own gives back every byte when it ends, and takes nobody along when it crashes.
    """

    def __init__(self, entry: ModelEntry, directory: Path, flags: Sequence[str]) -> None:
        self.entry, self._flags = entry, tuple(flags)
        self.path = directory / f"{len(entry.name)}-{abs(hash(entry.name)):x}.sock"
        self.state: State = "asleep"
        self.error = ""
        self.in_flight = 0  # requests for it, those included that wait for it to be loaded
        self.active = self.begun = 0  # requests that it answers now, and that it has begun since it was loaded
        self.leaving = False  # it takes no more requests, so that another model gets its turn
        self.last_used = self.loaded_at = time.monotonic()
        self.load_seconds: float | None = None
        self.client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(self.path)), base_url="http://127.0.0.1", timeout=None
        )
        self._process: asyncio.subprocess.Process | None = None
        self._log: asyncio.Task[None] | None = None
        self._tail = b""

    @property
    def resident(self) -> bool:
        """Whether it takes memory."""
        return self.state in ("loading", "ready", "stopping")

    async def start(self, kv: int) -> None:
        """Returns when it answers. RuntimeError with its last words when it does not."""
        self.state, self.error, self._tail = "loading", "", b""
        began = time.monotonic()
        listener = _listen(self.path)
        command = [sys.executable, "-m", "kvtrove", "serve", self.entry.model, "--fd", str(listener.fileno())]
        command += ["--kv", str(kv), "--served-model-name", self.entry.name]
        command += [word for alias in self.entry.aliases for word in ("--served-model-name", alias)]
        command += [*self.entry.flags(), *self._flags]
        with listener:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                pass_fds=[listener.fileno()],
                stdin=asyncio.subprocess.PIPE,  # closes when this process ends, however it ends
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                limit=2**20,
            )
        self._log = asyncio.create_task(self._read_log(self._process))
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._ready(self._process)
        except BaseException as error:
            await self.stop("failed")
            self.error = self._tail.decode(errors="replace").strip()[-LAST_WORDS:] or str(error)
            if isinstance(error, TimeoutError | httpx.HTTPError | RuntimeError):
                raise RuntimeError(self.error) from error
            raise
        self.state, self.loaded_at = "ready", time.monotonic()
        self.last_used, self.load_seconds = self.loaded_at, self.loaded_at - began
        log.info("%s is ready after %.1f s", self.entry.name, self.load_seconds)

    async def _ready(self, process: asyncio.subprocess.Process) -> None:
        """The question waits in the socket's backlog until the server takes it."""
        answer = asyncio.ensure_future(self.client.get("/health"))
        died = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait((answer, died), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() or answer.exception() is not None:
                code = await asyncio.wait_for(process.wait(), 5)
                raise RuntimeError(f"the process ended with status {code} before it answered")
        finally:
            for task in (answer, died):
                task.cancel()
            await asyncio.gather(answer, died, return_exceptions=True)

    async def stop(self, then: State = "asleep") -> None:
        """Ends the process; what it was answering is answered first, for as long as it drains."""
        process = self._process
        if process is not None and process.returncode is None:
            self.state = "stopping"
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
            except TimeoutError:
                log.error("%s did not end in %g s and is killed", self.entry.name, STOP_TIMEOUT)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if self._log is not None:
            await self._log
        self._process = self._log = None
        self.path.unlink(missing_ok=True)
        self.state = then

    async def watch(self) -> None:
        """Returns when the process has ended by itself."""
        if self._process is not None:
            await self._process.wait()

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            self._tail = (self._tail + line)[-2 * LAST_WORDS :]
            text = line.decode(errors="replace")
            sys.stderr.write(text if text.startswith("{") else f"[{self.entry.name}] {text}")  # JSON stays JSON


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(512)
    return listener
