"""Starting a server of several models: keys, budget, socket, signals."""

from __future__ import annotations

import contextlib
import logging
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from kvtrove.config import ConfigError
from kvtrove.fleet.app import create_app
from kvtrove.fleet.budget import base_bytes, divide
from kvtrove.fleet.child import Child
from kvtrove.fleet.fleet import Fleet
from kvtrove.fleet.models_file import ModelEntry
from kvtrove.models.spec import ModelError
from kvtrove.names import find_model
from kvtrove.plan.capacity import readable
from kvtrove.plan.memory import available_bytes
from kvtrove.server.auth import Keyring
from kvtrove.server.run import address_of, bind, configured
from kvtrove.server.settings import ServerSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FleetSettings:
    """memory: bytes of all models together; None is what is free. idle: seconds, 0 never. flags: for every model."""

    memory: int | None = None
    idle: float = 0.0
    wait: bool = True
    flags: tuple[str, ...] = ()


def serve_models(
    entries: Sequence[ModelEntry],
    server: ServerSettings,
    keyring: Keyring,
    settings: FleetSettings,
    say: Callable[[str], None],
) -> None:
    """Serve until a signal. ConfigError when a model cannot be served."""
    budget = available_bytes() if settings.memory is None else settings.memory
    bases = {entry.name: _base_bytes(entry) for entry in entries}
    needs = divide(entries, bases, budget)
    listener = bind(server, keyring)
    with tempfile.TemporaryDirectory(prefix="kvtrove-") as folder:
        children = [Child(entry, Path(folder), settings.flags) for entry in entries]
        fleet = Fleet(children, needs, budget, idle=settings.idle, wait=settings.wait)
        address = address_of(listener, server)
        say(f"{address}/v1 serves {len(entries)} models with {readable(budget)} of memory")
        for entry in entries:
            need, names = needs[entry.name], ", ".join((entry.name, *entry.aliases))
            say(f"  {names}: {readable(need.total)}, of it {readable(need.kv)} KV cache")
        say(f"page: {address}/  metrics: {address}/metrics  stop: Ctrl-C")
        app = create_app(fleet, keyring, server)
        config = configured(app, server, timeout_graceful_shutdown=int(server.drain_timeout) + 1)
        FleetServer(config, keyring).run([listener])


def _base_bytes(entry: ModelEntry) -> int:
    try:
        return base_bytes(entry, find_model(entry.model))
    except (ConfigError, ModelError) as error:
        raise ConfigError(f"--models: [{entry.name}] {error}") from error


class FleetServer(uvicorn.Server):
    """The first SIGTERM or SIGINT lets requests finish, the second one does not; SIGHUP reads the keys again."""

    def __init__(self, config: uvicorn.Config, keyring: Keyring) -> None:
        super().__init__(config)
        self._keyring = keyring

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn would raise the signal again in the end, and so leave the folder of sockets behind."""
        self.should_exit, self.force_exit = True, self.should_exit

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        def on_hangup(number: int, frame: FrameType | None) -> None:
            self._keyring.reload()

        before = signal.signal(signal.SIGHUP, on_hangup)
        try:
            with super().capture_signals():
                yield
        finally:
            signal.signal(signal.SIGHUP, before)
