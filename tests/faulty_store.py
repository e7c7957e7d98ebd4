"""A store in plain dictionaries that misbehaves at the n-th operation, as badly as `BlockStore` allows.

    fail    the operation ends with ERROR and nothing is stored or read
    stall   the ticket stays out for `patience` polls and ends with TIMEOUT; the rows of a `get` are scribbled on first
    tear    half of the row is kept (put) or delivered (get): CHECKSUM when it is read
    flip    one bit of the row changes on the medium: CHECKSUM when it is read
    lose    the row is gone although `lookup` says HERE: MISS

An operation is one row of one `get` or `put`. Without a fault the store is the simplest one that passes the conformance
tests, and `delay` polls late with every ticket.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from kvtrove.kv.tiers.store import Found, Outcome, Ticket, TierFigures

Fault = Literal["fail", "stall", "tear", "flip", "lose"]
FAULTS: tuple[Fault, ...] = ("fail", "stall", "tear", "flip", "lose")


class FaultyStore:
    """at: numbers of the operations that go wrong, from 0; None is all. budget: bytes; the oldest rows leave first."""

    def __init__(
        self,
        fault: Fault | None = None,
        at: Collection[int] | None = None,
        *,
        delay: int = 0,
        patience: int = 3,
        budget: int = 1 << 30,
    ) -> None:
        self.name = "faulty"
        self.on_done: Callable[[], None] | None = None
        self.operations = 0
        self._fault, self._at = fault, at
        self._delay, self._patience = delay, patience
        self._budget = budget
        self._rows: dict[bytes, tuple[bytes, int]] = {}  # key -> (what the medium holds, CRC of what was put)
        self._reasons: dict[bytes, str] = {}
        self._out: list[tuple[int, Ticket]] = []  # (polls until it is done, ticket)
        self._counts = dict.fromkeys(("hits", "misses", "stored", "declined", "evicted"), 0)
        self._errors: dict[str, int] = {}

    def lookup(self, keys: Sequence[bytes]) -> Sequence[Found]:
        return [Found.HERE if key in self._rows else Found.MISSING for key in keys]

    def get(self, keys: Sequence[bytes], rows: Sequence[memoryview]) -> Ticket:
        ticket = Ticket("get", tuple(keys))
        stalls = 0
        for i, (key, row) in enumerate(zip(keys, rows, strict=True)):
            fault = self._next_fault()
            stalls += fault == "stall"
            self._finish(ticket, i, self._read(key, row, fault), row.nbytes)
        return self._hand_out(ticket, stalls)

    def put(self, keys: Sequence[bytes], rows: Sequence[memoryview]) -> Ticket:
        ticket = Ticket("put", tuple(keys))
        stalls = 0
        for i, (key, row) in enumerate(zip(keys, rows, strict=True)):
            fault = self._next_fault()
            stalls += fault == "stall"
            self._finish(ticket, i, self._write(key, bytes(row), fault), row.nbytes)
        return self._hand_out(ticket, stalls)

    def delete(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self._rows.pop(key, None)

    def poll(self) -> list[Ticket]:
        done = [ticket for polls, ticket in self._out if polls <= 0]
        self._out = [(polls - 1, ticket) for polls, ticket in self._out if polls > 0]
        for ticket in done:
            ticket.done = True
        return done

    def reason(self, key: bytes) -> str | None:
        return self._reasons.get(key)

    def figures(self) -> Sequence[TierFigures]:
        return (
            TierFigures(
                self.name,
                entries=len(self._rows),
                nbytes=self._nbytes,
                budget=self._budget,
                errors=dict(self._errors),
                **self._counts,  # type: ignore[arg-type]
            ),
        )

    def close(self) -> None:
        for _, ticket in self._out:
            ticket.done = True
        self._out.clear()

    @property
    def _nbytes(self) -> int:
        return sum(len(content) for content, _ in self._rows.values())

    def _next_fault(self) -> Fault | None:
        number = self.operations
        self.operations += 1
        return self._fault if self._at is None or number in self._at else None

    def _read(self, key: bytes, row: memoryview, fault: Fault | None) -> Outcome:
        if fault in ("tear", "flip") and key in self._rows:
            content, crc = self._rows[key]
            self._rows[key] = (_damaged(content, fault), crc)
        if fault == "lose":
            self._rows.pop(key, None)
        if fault in ("stall", "fail"):
            row[: row.nbytes // 2] = b"\xa5" * (row.nbytes // 2)
            return Outcome.TIMEOUT if fault == "stall" else Outcome.ERROR
        if key not in self._rows:
            return Outcome.MISS
        content, crc = self._rows[key]
        row[: len(content)] = content[: row.nbytes]
        if len(content) == row.nbytes and zlib.crc32(content) == crc:
            return Outcome.OK
        del self._rows[key]
        self._reasons[key] = "damaged"
        return Outcome.CHECKSUM

    def _write(self, key: bytes, content: bytes, fault: Fault | None) -> Outcome:
        if fault in ("stall", "fail"):
            return Outcome.TIMEOUT if fault == "stall" else Outcome.ERROR
        if key in self._rows or fault == "lose":
            return Outcome.OK
        if len(content) > self._budget:
            return Outcome.DECLINED
        while self._nbytes + len(content) > self._budget:
            oldest = next(iter(self._rows))
            del self._rows[oldest]
            self._reasons[oldest] = "evicted"
            self._counts["evicted"] += 1
        kept = _damaged(content, fault) if fault in ("tear", "flip") else content
        self._rows[key] = (kept, zlib.crc32(content))
        return Outcome.OK

    def _finish(self, ticket: Ticket, i: int, outcome: Outcome, nbytes: int) -> None:
        ticket.outcomes[i] = outcome
        ticket.sources[i] = self.name
        good = outcome is Outcome.OK
        ticket.nbytes += nbytes * good
        if outcome is Outcome.DECLINED:
            self._counts["declined"] += 1
        elif ticket.kind == "get":
            self._counts["hits" if good else "misses"] += 1
        else:
            self._counts["stored"] += good
        if outcome not in (Outcome.OK, Outcome.MISS, Outcome.DECLINED):
            self._errors[outcome.value] = self._errors.get(outcome.value, 0) + 1

    def _hand_out(self, ticket: Ticket, stalls: int) -> Ticket:
        self._out.append((self._patience if stalls else self._delay, ticket))
        if self.on_done is not None:
            self.on_done()
        return ticket


def _damaged(content: bytes, fault: Fault | None) -> bytes:
    if fault == "tear":
        return content[: len(content) // 2]
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
