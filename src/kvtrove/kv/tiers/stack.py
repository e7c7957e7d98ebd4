"""Tiers: stores in order, fastest first, as one store.

lookup   the first that has it         put      all of them, each with its own admission
get      the first that has it; when that fails, the next one; what comes from below is put into those above
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvtrove.config import ConfigError
from kvtrove.kernels import available
from kvtrove.kv.tiers.disk import DiskSettings, DiskStore
from kvtrove.kv.tiers.ram import RamSettings, RamStore
from kvtrove.kv.tiers.redis import RedisStore
from kvtrove.kv.tiers.spec import Settings, parse_tier
from kvtrove.kv.tiers.store import BlockStore, Found, Outcome, Ticket, TierFigures

_WORSE = (Outcome.OK, Outcome.DECLINED, Outcome.MISS, Outcome.ERROR, Outcome.TIMEOUT, Outcome.CHECKSUM)
"""Best first: of a `put` to several tiers, the best outcome counts."""


def open_tiers(specs: Sequence[str | Settings], format_id: str, fingerprint: bytes) -> Tiers:
    """Open every tier, or none. Raises ConfigError for what cannot work, ValueErrors of the settings included."""
    settings = [parse_tier(spec) if isinstance(spec, str) else spec for spec in specs]
    if any(not isinstance(one, RamSettings) for one in settings) and not available():
        raise ConfigError(
            "tiers on disk and Redis need the compiled kernels; install a wheel, or build them, or use ram:"
        )
    stores: list[BlockStore] = []
    try:
        for one in settings:
            stores.append(_open(one, format_id, fingerprint))
            same = sum(store.name.split()[0] == stores[-1].name for store in stores[:-1])
            if same:
                stores[-1].name += f" {same + 1}"
    except BaseException:
        for store in stores:
            store.close()
        raise
    return Tiers(stores)


def _open(settings: Settings, format_id: str, fingerprint: bytes) -> BlockStore:
    if isinstance(settings, RamSettings):
        return RamStore(settings)
    if isinstance(settings, DiskSettings):
        return DiskStore(settings, format_id, fingerprint)
    return RedisStore(settings, format_id, fingerprint)


@dataclass(eq=False, slots=True)
class _Request:
    """A ticket of the stack, and for each key the tiers that may still answer."""

    ticket: Ticket
    rows: Sequence[memoryview]
    started: float
    left: list[list[int]] = field(default_factory=list)
    out: int = 0  # tickets of tiers that are not back yet


class Tiers:
    """A `BlockStore` of stores, fastest first. An empty stack holds nothing and declines everything."""

    def __init__(self, stores: Sequence[BlockStore]) -> None:
        self.name = "tiers"
        self.stores = list(stores)
        self._on_done: Callable[[], None] | None = None
        self._out: dict[int, tuple[Ticket, _Request, list[int], int]] = {}  # by identity: ..., its keys, the tier
        self._done: list[Ticket] = []

    @property
    def on_done(self) -> Callable[[], None] | None:
        return self._on_done

    @on_done.setter
    def on_done(self, call: Callable[[], None] | None) -> None:
        self._on_done = call
        for store in self.stores:
            store.on_done = call

    def lookup(self, keys: Sequence[bytes]) -> Sequence[Found]:
        best = [Found.MISSING] * len(keys)
        for store in self.stores:
            open_ = [i for i, found in enumerate(best) if found is not Found.HERE]
            if not open_:
                break
            for i, found in zip(open_, store.lookup([keys[i] for i in open_]), strict=True):
                if found is not Found.MISSING:
                    best[i] = found
        return best

    def get(self, keys: Sequence[bytes], rows: Sequence[memoryview]) -> Ticket:
        request = _Request(Ticket("get", tuple(keys)), rows, time.monotonic(), [[] for _ in keys])
        for number, store in enumerate(self.stores):
            for left, found in zip(request.left, store.lookup(keys), strict=True):
                if found is not Found.MISSING:
                    left.append(number)
        self._ask(request, list(range(len(keys))))
        return request.ticket

    def put(self, keys: Sequence[bytes], rows: Sequence[memoryview]) -> Ticket:
        request = _Request(Ticket("put", tuple(keys)), (), time.monotonic())
        everything = list(range(len(keys)))
        for number, store in enumerate(self.stores):
            self._wait_for(request, everything, number, store.put(keys, rows))
        self._end_if_complete(request)
        return request.ticket

    def delete(self, keys: Sequence[bytes]) -> None:
        for store in self.stores:
            store.delete(keys)

    def poll(self) -> list[Ticket]:
        for store in self.stores:
            for back in store.poll():
                if id(back) in self._out:  # and is no promotion, for which nobody waits
                    _, request, indices, number = self._out.pop(id(back))
                    request.out -= 1
                    self._take(request, indices, number, back)
        done, self._done = self._done, []
        return done

    def reason(self, key: bytes) -> str | None:
        return next((why for store in self.stores if (why := store.reason(key)) is not None), None)

    def figures(self) -> Sequence[TierFigures]:
        return tuple(figures for store in self.stores for figures in store.figures())

    def close(self) -> None:
        for store in self.stores:
            store.close()
        self.poll()

    # ---- the parts ----

    def _wait_for(self, request: _Request, indices: list[int], number: int, ticket: Ticket) -> None:
        self._out[id(ticket)] = ticket, request, indices, number
        request.out += 1

    def _ask(self, request: _Request, indices: list[int]) -> None:
        """Ask the next tier of each key; those that no tier is left for end."""
        by_tier: dict[int, list[int]] = {}
        for i in indices:
            if request.left[i]:
                by_tier.setdefault(request.left[i].pop(0), []).append(i)
            elif request.ticket.outcomes[i] is None:
                request.ticket.outcomes[i] = Outcome.MISS
        for number, mine in sorted(by_tier.items()):
            keys, rows = [request.ticket.keys[i] for i in mine], [request.rows[i] for i in mine]
            self._wait_for(request, mine, number, self.stores[number].get(keys, rows))
        self._end_if_complete(request)

    def _take(self, request: _Request, indices: list[int], number: int, back: Ticket) -> None:
        """One tier has answered."""
        ticket = request.ticket
        if ticket.kind == "put":
            for i, outcome in zip(indices, back.outcomes, strict=True):
                known = ticket.outcomes[i]
                if outcome is not None and (known is None or _WORSE.index(outcome) < _WORSE.index(known)):
                    ticket.outcomes[i], ticket.sources[i] = outcome, self.stores[number].name
            ticket.nbytes = max(ticket.nbytes, back.nbytes)
            self._end_if_complete(request)
            return
        again, fresh = [], []
        for i, outcome in zip(indices, back.outcomes, strict=True):
            if outcome is Outcome.OK:
                fresh.append(i)
            else:
                again.append(i)
            if outcome is Outcome.OK or ticket.outcomes[i] is None:
                ticket.outcomes[i], ticket.sources[i] = outcome, self.stores[number].name
        ticket.nbytes += back.nbytes
        if fresh:
            for store in self.stores[:number]:
                store.put([ticket.keys[i] for i in fresh], [request.rows[i] for i in fresh])
        self._ask(request, again)

    def _end_if_complete(self, request: _Request) -> None:
        ticket = request.ticket
        if request.out or ticket.done:
            return
        for i, outcome in enumerate(ticket.outcomes):
            if outcome is None:
                ticket.outcomes[i] = Outcome.MISS if ticket.kind == "get" else Outcome.DECLINED
        ticket.done = True
        ticket.seconds = time.monotonic() - request.started
        self._done.append(ticket)
