"""Running the server: the port, the signals, the drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from kvtrove.config import ConfigError
from kvtrove.server.auth import Keyring
from kvtrove.server.connections import Connections, guarded, plan_descriptors
from kvtrove.server.service import Service
from kvtrove.server.settings import ServerSettings, is_loopback

log = logging.getLogger(__name__)
ENGINE_DIED = 70  # EX_SOFTWARE of sysexits.h


def bind(settings: ServerSettings, keyring: Keyring) -> socket.socket:
    """A socket on the wanted address, before a model is loaded for nothing.

    ConfigError when the address is taken, or can be reached by others while there is no key.
    """
    if not keyring.guarded and not is_loopback(settings.host):
        raise ConfigError(
            f"host: {settings.host} can be reached from other machines, and without API keys anyone there could use "
            "the model; give --api-key KEY (or KVTROVE_API_KEY, or --api-keys FILE), or keep --host 127.0.0.1"
        )
    try:
        family, kind, proto, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        # asyncio sets TCP_NODELAY only where the protocol is named; without it the second piece of every stream waits
        # 40 ms for the client's delayed acknowledgement
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        hint = "; --port 0 takes any free one" if isinstance(error, OSError) and error.errno == 98 else ""
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}{hint}"
        ) from error
    return listener


def listener_of(fd: int) -> socket.socket:
    """A socket that the parent process listens on already. When the parent ends and with it our stdin, so do we."""

    def end_with_parent() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, name="parent", daemon=True).start()
    return socket.socket(fileno=fd)


def address_of(listener: socket.socket, settings: ServerSettings) -> str:
    """`http://127.0.0.1:8000`."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    scheme = "http" if settings.ssl_certfile is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def configured(app: FastAPI, settings: ServerSettings, **more: Any) -> uvicorn.Config:
    """What all servers have in common: logs are ours, and HTTPS where there is a certificate that can be used."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
        **more,
    )
    config.load()
    return config


class DrainingServer(uvicorn.Server):
    """uvicorn, but the first SIGTERM or SIGINT drains, the second one ends the process at once, and SIGHUP reads the
    keys again.

    While it drains the port stays open: new requests are told to come back (503), accepted ones finish.
    """

    def __init__(self, config: uvicorn.Config, service: Service, keyring: Keyring) -> None:
        super().__init__(config)
        self.service, self.keyring = service, keyring
        service.engine.on_death = self._engine_died
        self._drain: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.service.admission.draining:
                os._exit(128 + number)
            self.service.admission.draining = True
            loop.call_soon_threadsafe(self._start_drain)

        def on_hangup(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.keyring.reload)

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, on_hangup)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _engine_died(self) -> None:
        """End the process once everyone has been told, so that whoever supervises it starts another."""
        log.critical("the process ends because its engine has")
        self.should_exit = True

    def _start_drain(self) -> None:
        self._drain = asyncio.get_running_loop().create_task(self._finish())

    async def _finish(self) -> None:
        admission, timeout = self.service.admission, self.service.settings.drain_timeout
        log.warning("shutting down: %d requests have up to %g s to finish", admission.num_in_flight, timeout)
        try:
            async with asyncio.timeout(timeout):
                await admission.empty()
        except TimeoutError:
            log.warning("%d requests did not finish in time and are told so", admission.num_in_flight)
            await self.service.engine.stop()
        self.should_exit = True


def run(app: FastAPI, service: Service, listener: socket.socket, keyring: Keyring) -> None:
    """Serve until a signal; returns when everything accepted has been answered. SystemExit when the engine dies."""
    limits = service.limits
    descriptors = plan_descriptors(limits.max_connections)
    config = configured(
        app,
        service.settings,
        http=guarded(Connections(descriptors.most, limits.idle_timeout)),
        backlog=descriptors.backlog,
        timeout_keep_alive=int(limits.idle_timeout),
        timeout_graceful_shutdown=5,
    )
    DrainingServer(config, service, keyring).run([listener])
    if service.engine.stuck:
        logging.shutdown()
        os._exit(ENGINE_DIED)  # Python would wait for the thread that hangs
    if service.engine.error is not None:
        raise SystemExit(ENGINE_DIED)
