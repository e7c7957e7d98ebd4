"""A real redis-server for tests, on a socket in a directory of theirs."""

from __future__ import annotations

import atexit
import functools
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

import pytest


class RedisServer:
    """Started at once, ended by `close`. `url` is without a database, as are its contents at the start."""

    def __init__(self, folder: Path) -> None:
        self._socket = folder / "redis.sock"
        self.url = f"unix://{self._socket}"
        self.start()

    def start(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("redis-server is not installed (Debian: apt install redis-server)")
        options = ["--port", "0", "--unixsocket", str(self._socket), "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, cwd=self._socket.parent)
        until = time.monotonic() + 10
        while not self._socket.exists():
            assert time.monotonic() < until
            time.sleep(0.01)

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.unlink(missing_ok=True)

    def close(self) -> None:
        self.kill()

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


@functools.cache
def _shared() -> RedisServer:
    folder = tempfile.TemporaryDirectory(prefix="kvtrove-redis-")
    server = RedisServer(Path(folder.name))

    def end() -> None:
        server.close()
        folder.cleanup()

    atexit.register(end)
    return server


def server_url(here: Path) -> str:
    """The URL of an empty database of a server that all tests of a process share."""
    import redis

    url = f"{_shared().url}?db=0"
    redis.Redis.from_url(url).flushdb()
    return url
