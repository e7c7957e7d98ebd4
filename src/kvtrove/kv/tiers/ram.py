"""RamStore: rows in host memory, which leave in the order of choice, compressed if asked for.

plain    put copies, get copies back: done at once, without a thread
zstd     threads compress and decompress; the two bytes of 16-bit numbers lie apart first, since exponents repeat
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from kvtrove.kv.block import Block
from kvtrove.kv.evicted import EvictedKeys
from kvtrove.kv.eviction.orders import Eviction
from kvtrove.kv.tiers.admission import Admission, Admit
from kvtrove.kv.tiers.codec import CODECS, Codec
from kvtrove.kv.tiers.desk import AtDesk, Desk, Job, Lane
from kvtrove.kv.tiers.store import Found, Outcome, Ticket, TierFigures, evicted_reason

ENTRY_OVERHEAD = 256
"""Bytes of Python's objects for an entry, counted towards the budget."""
CODEC_THREADS = 2
ORDERS = ("lru", "s3fifo", "sieve", "lfu")
"""Of `EVICTION`, those that need to know no more of a row than that it was used."""
CLOSE_SECONDS = 2.0


@dataclass(frozen=True)
class RamSettings:
    """size: bytes of rows as they are kept, and of those in flight. admit: as for the disk tier. eviction: who leaves
    first, one of ORDERS.
    """

    size: int
    codec: Literal["none", "zstd"] = "none"
    admit: Admit = "first"
    timeout: float = 2.0
    eviction: str = "lru"


@dataclass(eq=False, slots=True)
class _Row:
    content: bytes
    length: int  # of the row; of `content` too, if it is not compressed
    block: Block | None = None  # its place in the eviction order

    @property
    def cost(self) -> int:
        return len(self.content) + ENTRY_OVERHEAD


class RamStore(AtDesk):
    """A `BlockStore` in this process's memory."""

    def __init__(self, settings: RamSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = "ram"
        self.settings = settings
        self._desk = Desk(self.name, settings.timeout, clock)
        self._codec: Codec | None = CODECS[settings.codec]() if settings.codec != "none" else None
        self._lane = Lane(f"{self.name} codec", CODEC_THREADS)
        self._admission = Admission(settings.admit)
        self._evicted = EvictedKeys(clock=clock)
        self._rows: dict[bytes, _Row] = {}
        self._order = Eviction.named(settings.eviction, 1, clock).order()
        self._count = 0
        self._nbytes = 0
        self._in_flight: dict[bytes, _Row] = {}  # not compressed yet
        self._lock = threading.Lock()

    def lookup(self, keys: Sequence[bytes]) -> Sequence[Found]:
        rows, in_flight = self._rows, self._in_flight
        return [Found.HERE if key in rows or key in in_flight else Found.MISSING for key in keys]

    def get(self, keys: Sequence[bytes], rows: Sequence[memoryview]) -> Ticket:
        job = self._desk.open("get", keys, rows)
        for i, key in enumerate(keys):
            with self._lock:
                plain, row = self._in_flight.get(key), self._rows.get(key)
                if row is not None:
                    self._used(row)
            if plain is not None:
                job.deliver(i, memoryview(plain.content))
            elif row is None or row.length != rows[i].nbytes:
                job.settle(i, Outcome.MISS)
            elif self._codec is None:
                job.deliver(i, memoryview(row.content))
            else:
                self._lane.submit(self._decompress, job, i, row)
        return job.ticket

    def put(self, keys: Sequence[bytes], rows: Sequence[memoryview]) -> Ticket:
        job = self._desk.open("put", keys, rows)
        for i, (key, row) in enumerate(zip(keys, rows, strict=True)):
            if key in self._rows or key in self._in_flight:
                with self._lock:
                    if key in self._rows:
                        self._used(self._rows[key])
                job.settle(i, Outcome.OK, row.nbytes)
                continue
            cost = row.nbytes + ENTRY_OVERHEAD
            if cost > self.settings.size or not row.nbytes or not self._admission.admits(key):
                job.settle(i, Outcome.DECLINED)
                continue
            copy = _Row(bytes(row), row.nbytes)
            if self._codec is None:
                self._keep(key, copy)
                job.settle(i, Outcome.OK, row.nbytes)
                continue
            with self._lock:
                self._in_flight[key] = copy
                self._nbytes += copy.cost
            self._make_room()
            self._lane.submit(self._compress, job, i, copy)
        return job.ticket

    def delete(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._drop(key)

    def reason(self, key: bytes) -> str | None:
        return evicted_reason(self.name, self._evicted.age(key))

    def figures(self) -> Sequence[TierFigures]:
        entries = len(self._rows) + len(self._in_flight)
        return (self._desk.figures(self.name, entries=entries, nbytes=self._nbytes, budget=self.settings.size),)

    def close(self) -> None:
        self._lane.close(CLOSE_SECONDS)
        self._desk.close()
        with self._lock:
            for key in list(self._rows):
                self._take_out(key)
            self._in_flight.clear()
            self._nbytes = 0

    # ---- the parts ----

    def _put_in(self, key: bytes, row: _Row) -> None:
        """With the lock: it can be found from now on."""
        self._count += 1
        row.block = Block(self._count)
        row.block.key = key
        self._order.add(row.block)
        self._rows[key] = row
        self._nbytes += row.cost

    def _take_out(self, key: bytes) -> _Row | None:
        """With the lock."""
        row = self._rows.pop(key, None)
        if row is not None and row.block is not None:
            self._order.remove(row.block)
            self._nbytes -= row.cost
        return row

    def _used(self, row: _Row) -> None:
        """With the lock: somebody wanted it."""
        if row.block is not None:
            self._order.remove(row.block)
            row.block.uses += 1
            self._order.add(row.block)

    def _keep(self, key: bytes, row: _Row) -> None:
        with self._lock:
            self._put_in(key, row)
        self._desk.count("stored")
        self._desk.count("bytes_written", row.length)
        self._make_room()

    def _make_room(self) -> None:
        """Rows leave until the budget holds. Those in flight stay: they are newer than all others."""
        while self._nbytes > self.settings.size:
            with self._lock:
                if not self._rows:
                    return
                first = self._order.victim()
                self._nbytes -= self._rows.pop(first.key).cost
            self._evicted.add(first.key)
            self._desk.count("evicted")

    def _drop(self, key: bytes) -> None:
        with self._lock:
            self._take_out(key)
            row = self._in_flight.pop(key, None)
            if row is not None:
                self._nbytes -= row.cost

    def _compress(self, job: Job, i: int, plain: _Row) -> None:
        assert self._codec is not None
        key = job.ticket.keys[i]
        row = _Row(self._codec.compress(plain.content), plain.length)
        with self._lock:
            wanted = self._in_flight.get(key) is plain  # not deleted meanwhile
            if wanted:
                self._nbytes -= plain.cost
                del self._in_flight[key]
                self._put_in(key, row)
        if wanted:
            self._desk.count("stored")
            self._desk.count("bytes_written", plain.length)
        self._make_room()
        job.settle(i, Outcome.OK, plain.length)

    def _decompress(self, job: Job, i: int, row: _Row) -> None:
        assert self._codec is not None
        if job.is_over:
            return
        content = self._codec.decompress(row.content, row.length)
        if content is None:
            self._drop(job.ticket.keys[i])
            job.settle(i, Outcome.CHECKSUM)
        else:
            job.deliver(i, memoryview(content))
