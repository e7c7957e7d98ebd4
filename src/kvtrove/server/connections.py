"""How many connections there may be, and how long one may be open without asking for anything.

    descriptors   | in use at start | connections | kept free: the listener's backlog, files, pipes |
                                                                          soft limit of the process ^

A connection more than that pushes out the one that has been idle for longest; with none idle it gets 503 at once. The
kernel is told to hold no more in its backlog than are kept free, so accept never runs out of descriptors.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import time
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from kvtrove.config import ConfigError
from kvtrove.server.errors import ApiError

log = logging.getLogger(__name__)
FILES = 64  # descriptors kept for logs, reloads, sockets of the event loop and the like
BACKLOG = 512
LOG_EVERY = 10.0  # seconds between two log lines about refused connections


@dataclass
class Connections:
    """The open ones. most: how many there may be. idle_timeout: seconds for a connection to send a whole head.

    All methods belong to the event loop.
    """

    most: int
    idle_timeout: float
    open: set[Guarded] = field(default_factory=set)
    idle: dict[Guarded, None] = field(default_factory=dict)
    """Those without a request in flight, longest idle first."""
    refused: int = 0
    _logged: float = -LOG_EVERY

    def admit(self, one: Guarded) -> bool:
        """Count a new connection in; False when it must go."""
        if len(self.open) >= self.most:
            oldest = next(iter(self.idle), None)
            if oldest is None:
                self._refuse()
                return False
            oldest.end()
        self.open.add(one)
        return True

    def forget(self, one: Guarded) -> None:
        self.open.discard(one)
        self.idle.pop(one, None)

    def _refuse(self) -> None:
        self.refused += 1
        if time.monotonic() - self._logged >= LOG_EVERY:
            self._logged = time.monotonic()
            log.warning("%d connections are open, the most there may be; %d were refused", self.most, self.refused)


class Guarded(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's connection, counted, and ended when no request comes in time."""

    connections_open: Connections  # of the subclass that `guarded` makes

    def connection_made(self, transport: Any) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._admitted = self.connections_open.admit(self)
        if not self._admitted:
            transport.write(_REFUSAL)
            transport.close()
            return
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        if not self._admitted:
            return
        super().data_received(data)
        if not self._idle:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._idle and not self.transport.is_closing():
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.connections_open.forget(self)
        if self._admitted:
            super().connection_lost(exc)

    def end(self) -> None:
        """Close it now; it has no request in flight."""
        self.connections_open.forget(self)
        self.transport.close()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _wait(self) -> None:
        self._stop_waiting()
        self.connections_open.idle[self] = None
        self._timer = asyncio.get_running_loop().call_later(self.connections_open.idle_timeout, self.end)

    def _stop_waiting(self) -> None:
        self.connections_open.idle.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def guarded(connections: Connections) -> type[Guarded]:
    """The class of protocol that uvicorn makes one of per connection."""
    return type("GuardedConnection", (Guarded,), {"connections_open": connections})


@dataclass(frozen=True)
class Descriptors:
    """most: connections for which there are descriptors. backlog: of the listener."""

    most: int
    backlog: int


def plan_descriptors(wanted: int) -> Descriptors:
    """Room for `wanted` connections, raising the process's soft limit where its hard one allows it.

    ConfigError when there are descriptors for none.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = _open_descriptors()
    needed = used + FILES + BACKLOG + wanted
    if needed > soft and (hard == resource.RLIM_INFINITY or soft < hard):
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    backlog = min(BACKLOG, max(8, soft // 8))
    most = min(wanted, soft - used - FILES - backlog)
    if most < 1:
        raise ConfigError(
            f"{soft} file descriptors (ulimit -n) leave none for connections beside the {used} in use: "
            f"ulimit -n {used + FILES + 2 * BACKLOG} is enough for {BACKLOG}"
        )
    if most < wanted:
        log.warning("file descriptors (ulimit -n %d) allow %d connections instead of %d", soft, most, wanted)
    return Descriptors(most, backlog)


def _open_descriptors() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 64


def _refusal() -> bytes:
    error = ApiError(503, "the server has as many connections open as it can hold; come back later", code="server_busy")
    body = json.dumps(error.body).encode()
    head = f"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"retry-after: 1\r\nconnection: close\r\n\r\n" + body


_REFUSAL = _refusal()
