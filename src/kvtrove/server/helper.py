"""Helper processes: native code that may crash, eat memory or never return does so there, and not in the server.

    here   Helper.call   --  length, bytes  -->  stdin    serve(handle)   there
                         <-- length, bytes  --   stdout

A helper that dies or takes too long is killed; the next call starts another one.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

_LENGTH = struct.Struct("<Q")


class HelperError(Exception):
    """A call without an answer. `timed_out`: it took too long; otherwise the process died, `signal` says of what."""

    def __init__(self, timed_out: bool, signal_name: str = "") -> None:
        super().__init__("it took too long" if timed_out else f"it died of {signal_name}")
        self.timed_out, self.signal = timed_out, signal_name


class Helper:
    """One process that runs `module`, started by the first call; `setup` is the first thing that it reads.

    Calls are answered one at a time, in the order in which they come.
    """

    def __init__(self, module: str, setup: Callable[[], bytes]) -> None:
        self._module, self._setup = module, setup
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, request: bytes, seconds: float, start_seconds: float = 60.0) -> bytes:
        """The answer of the process. HelperError when it dies, or has said nothing for `seconds`.

        start_seconds: how long it may take to start, which the first call waits for as well.
        """
        with self._lock:
            try:
                if self._process is None:
                    self._process = self._started()
                    self._send(self._setup())
                    self._receive(start_seconds)
                self._send(request)
                return self._receive(seconds)
            except (BrokenPipeError, EOFError, TimeoutError) as error:
                code = self._kill()
                name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
                raise HelperError(isinstance(error, TimeoutError), name) from error
            except BaseException:
                self._kill()
                raise

    def close(self) -> None:
        """End the process now, even in the middle of a call."""
        process = self._process
        if process is not None:
            process.kill()

    def _started(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # native code announces its death at length
            bufsize=0,
            env=environment,
            start_new_session=True,  # Ctrl+C is for the server alone, which ends its helpers when it is done
        )

    def _send(self, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        view = memoryview(_LENGTH.pack(len(data)) + data)
        while view:
            view = view[self._process.stdin.write(view) :]

    def _receive(self, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, deadline))
        return self._read(length, deadline)

    def _read(self, length: int, deadline: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        pipe, parts = self._process.stdout, bytearray()
        while len(parts) < length:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            part = pipe.read(length - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def _kill(self) -> int:
        """Returns the exit status, negative for a signal."""
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that has died says of what
            process.wait(0.5)
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return process.wait()


# ---- the other side ----


def serve(start: Callable[[bytes], Callable[[bytes], bytes]], memory: int) -> None:
    """The life of a helper: `start` makes the handler of requests from the setup, then one answer per request until
    the pipe ends. memory: bytes that it may take beyond what it holds when it has started.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # when memory runs out, the helper goes before the server
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    os.nice(5)  # requests that run come before requests that are only being prepared
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anybody prints is no answer
    handle = start(_read_frame(requests))
    _limit_memory(memory)
    _write_frame(answers, b"")
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            _write_frame(answers, handle(_read_frame(requests)))


def _end_with_parent(parent: int) -> None:
    """A server that was killed cannot end its helpers: they notice within a second, busy or not."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _limit_memory(more: int) -> None:
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
        limit = pages * resource.getpagesize() + more
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _read_frame(pipe: BinaryIO) -> bytes:
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    return pipe.read(_LENGTH.unpack(head)[0])


def _write_frame(pipe: BinaryIO, data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()
