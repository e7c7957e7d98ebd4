"""Which models are loaded: on demand, within the budget, the one that was idle for longest leaving first."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from kvtrove.config import nearest
from kvtrove.fleet.budget import Need
from kvtrove.fleet.child import Child
from kvtrove.plan.capacity import readable
from kvtrove.server.errors import ApiError

log = logging.getLogger(__name__)
LOOK_EVERY = 1.0  # seconds between two looks for models that have been idle for too long
USUAL_LOAD = 10.0  # seconds that a load is expected to take before one was measured


class Fleet:
    """Event loop only. budget: bytes of all processes together. idle: seconds after which a model sleeps, 0 never.

    wait: a request for a model that is not loaded waits for it; else it gets 503 and the model is loaded meanwhile.
    """

    def __init__(
        self, children: Sequence[Child], needs: Mapping[str, Need], budget: int, *, idle: float, wait: bool
    ) -> None:
        self.children = {child.entry.name: child for child in children}
        self.needs, self.budget, self.idle, self.wait = dict(needs), budget, idle, wait
        self.evictions = 0
        self.draining = False
        self._names = {name: c for c in children for name in (c.entry.name, *c.entry.aliases)}
        self._changed = asyncio.Condition()  # a request has ended, or a model was loaded or stopped
        self._switch = asyncio.Lock()  # one change of what is loaded at a time: the budget is never exceeded in between
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._watches: set[asyncio.Task[None]] = set()

    def find(self, name: str | None) -> Child:
        """The model that a request names, as NAME or NAME:ADAPTER; the first one when it names none. ApiError 404."""
        if name is None:
            return next(iter(self.children.values()))
        child = self._names.get(name) or self._names.get(name.rpartition(":")[0])
        if child is None:
            hint = nearest(name, self._names) or f"; there is {', '.join(self.children)}"
            raise ApiError(404, f"the model {name!r:.100} is not here{hint}", param="model", code="model_not_found")
        return child

    @property
    def used(self) -> int:
        """Bytes of the budget that processes may take now."""
        return sum(self.needs[name].total for name, child in self.children.items() if child.resident)

    @asynccontextmanager
    async def using(self, child: Child, *, looks: bool = False) -> AsyncIterator[None]:
        """The model is ready and stays so. Loads it first if need be; ApiError as `load`. looks: is no use of it."""
        child.in_flight += 1
        try:
            while child.state != "ready" or child.leaving:
                if child.leaving:
                    await self._change()
                else:
                    await self.load(child)
            child.active, child.begun = child.active + 1, child.begun + 1
            try:
                await self._tell()
                yield
            finally:
                child.active -= 1
                child.last_used = child.last_used if looks else time.monotonic()
        finally:
            child.in_flight -= 1
            await self._tell()

    async def _change(self) -> None:
        async with self._changed:
            await self._changed.wait()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def load(self, child: Child) -> None:
        """Returns when the model is ready. ApiError 503 when it may not be loaded or does not start."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="draining", headers={"retry-after": "10"})
        if child.state == "unloaded":
            raise ApiError(503, f"{child.entry.name} was unloaded by an administrator", code="model_unloaded")
        task = self._loads.get(child.entry.name)
        if task is None and child.state != "ready":
            task = asyncio.create_task(self._load(child))
            self._loads[child.entry.name] = task
            task.add_done_callback(lambda done: self._loads.pop(child.entry.name, None))
        if task is not None:
            await asyncio.shield(task)

    def begin_load(self, child: Child) -> int:
        """Starts loading without waiting; the seconds after which to ask again."""
        task = asyncio.create_task(self.load(child))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)
        return math.ceil(child.load_seconds or USUAL_LOAD)

    async def _load(self, child: Child) -> None:
        async with self._switch:
            if child.state == "ready":
                return
            await self._make_room(child)
            name = child.entry.name
            taken = readable(self.used) if self.used else "nothing"
            log.info("loading %s: %s of %s is taken", name, taken, readable(self.budget))
            child.begun = 0
            try:
                await child.start(self.needs[name].kv)
            except (RuntimeError, OSError) as error:
                log.error("%s did not start: %s", name, error)
                raise ApiError(503, f"{name} did not start; see the server's log", code="model_failed") from error
            watch = asyncio.create_task(self._watch(child))
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)
        await self._tell()

    async def _make_room(self, child: Child) -> None:
        """Puts models to sleep until this one fits: those that nobody wants, longest unused first; else the one that
        is loaded for longest, as soon as it has answered what it has begun.
        """
        need = self.needs[child.entry.name].total
        while self.used + need > self.budget:
            ready = [c for c in self.children.values() if c.state == "ready"]
            if not ready:
                await self._change()
                continue
            victim = min(ready, key=lambda c: (c.in_flight > 0, c.last_used if not c.in_flight else c.loaded_at))
            if victim.in_flight and not victim.begun:  # it was loaded for somebody who has not had it yet
                await self._change()
                continue
            log.info("%s makes room for %s", victim.entry.name, child.entry.name)
            victim.leaving = True
            try:
                while victim.active:
                    await self._change()
                self.evictions += 1
                await victim.stop()
            finally:
                victim.leaving = False
                await self._tell()

    async def _watch(self, child: Child) -> None:
        await child.watch()
        if child.state == "ready":
            log.error("%s ended by itself; the next request starts it again", child.entry.name)
            await child.stop()
            await self._tell()  # whoever came meanwhile waits for the memory that it had

    async def put_away(self, child: Child, then: str) -> None:
        """then: "asleep" (a request wakes it) or "unloaded" (load does)."""
        async with self._switch:
            await child.stop("unloaded" if then == "unloaded" else "asleep")
        await self._tell()

    async def keep_house(self) -> None:
        """Puts models to sleep that nobody has used for their time. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            for child in self.children.values():
                limit = self.idle if child.entry.idle is None else child.entry.idle
                quiet = child.state == "ready" and not child.in_flight and not self._switch.locked()
                if limit and quiet and time.monotonic() - child.last_used >= limit:
                    log.info("%s sleeps after %g s without a request", child.entry.name, limit)
                    await self.put_away(child, "asleep")

    async def stop(self) -> None:
        self.draining = True
        for task in [*self._loads.values()]:
            task.cancel()
        await asyncio.gather(*self._loads.values(), return_exceptions=True)
        await asyncio.gather(*(child.stop() for child in self.children.values()))
        for task in [*self._watches]:
            task.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await asyncio.gather(*(child.client.aclose() for child in self.children.values()))
