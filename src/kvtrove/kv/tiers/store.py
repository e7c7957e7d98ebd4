"""BlockStore: what every tier promises. Keys are 32 bytes, rows are bytes, and whatever fails is a miss with a reason.

    lookup ──> HERE ──> get ──> Ticket ──(threads of the store)──> poll() ──> outcomes: OK, MISS, CHECKSUM, ...
                        put ──> Ticket ──────────────────────────> poll() ──> outcomes: OK, DECLINED, ERROR, ...

One thread calls a store (the engine's); nothing it calls waits for the medium.

- `get` owns its rows until its ticket is done: the caller pins them and reads none of them before. Once the ticket is
  done nothing writes into them any more, not even an operation that comes back after its deadline. A row whose outcome
  is not OK holds anything.
- `put` has copied its rows when it returns: the caller may reuse them at once.
- A ticket is done by its deadline at the latest, provided that somebody polls.
- Rows that come back OK are, bit for bit, rows that were put under that key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol

KEY_BYTES = 32
ROW_FORMAT = "kvtrove row 1"
"""A row as engines store it: the bytes of an arena's row, whose meaning the fingerprint of the cache's spec tells."""


class Found(Enum):
    """The answer of `lookup` for one key; no promise, since a row may be evicted or prove damaged before it is read."""

    HERE = "here"
    MISSING = "missing"
    UNKNOWN_YET = "unknown yet"  # the store has asked elsewhere: look up again later


class Outcome(Enum):
    """How one key of a ticket ended."""

    OK = "ok"  # the row was read and verified, or is stored
    MISS = "miss"  # not there (any more)
    CHECKSUM = "checksum"  # there, but damaged: it will not be found again
    TIMEOUT = "timeout"  # not answered before the deadline
    ERROR = "error"  # the medium failed
    DECLINED = "declined"  # of `put`: no fault, but the row is not kept (admission, budget, too much in flight)


@dataclass(eq=False, slots=True)
class Ticket:
    """Work that was handed to a store; `poll` returns it once, when every key has its outcome.

    sources[i]: name of the tier that the row was read from or written to. nbytes: of the rows whose outcome is OK.
    seconds: from the call to the last outcome.
    """

    kind: Literal["get", "put"]
    keys: tuple[bytes, ...]
    outcomes: list[Outcome | None] = field(init=False)
    sources: list[str] = field(init=False)
    nbytes: int = 0
    seconds: float = 0.0
    done: bool = False

    def __post_init__(self) -> None:
        self.outcomes = [None] * len(self.keys)
        self.sources = [""] * len(self.keys)

    @property
    def ok(self) -> bool:
        """Whether it is done and every key ended well."""
        return self.done and all(outcome is Outcome.OK for outcome in self.outcomes)


@dataclass(frozen=True, slots=True)
class TierFigures:
    """One tier now, and since it was opened.

    nbytes: taken of `budget`, what is in flight included. hits, misses: keys of `get` that ended OK, and all others.
    stored, declined, evicted: rows. errors: reason ("checksum", "timeout", "disk full", ...) -> how often. bytes_read,
    bytes_written: of rows. read_rate: bytes per second of recent reads, waiting included; 0 before the first.
    latency_p50, latency_p99: seconds from `get` to its last outcome, recently. notices: faults that last now, in words.
    """

    name: str
    entries: int = 0
    nbytes: int = 0
    budget: int = 0
    hits: int = 0
    misses: int = 0
    stored: int = 0
    declined: int = 0
    evicted: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    read_rate: float = 0.0
    latency_p50: float = 0.0
    latency_p99: float = 0.0
    errors: Mapping[str, int] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


class BlockStore(Protocol):
    """A tier. Only bad settings raise (ConfigError, when it is opened); a failing medium never does.

    name: of the tier, as reports and metrics call it. on_done: called by a thread of the store when a ticket is done,
    to wake who waits; it must be quick. None: nobody sleeps.
    """

    name: str
    on_done: Callable[[], None] | None

    def lookup(self, keys: Sequence[bytes]) -> Sequence[Found]:
        """What is known of each key now, from memory alone."""
        ...

    def get(self, keys: Sequence[bytes], rows: Sequence[memoryview]) -> Ticket:
        """Read each key's row into rows[i], uint8, contiguous and writable, as long as the row that was put.

        All keys of a chain in one call: neighbours on the medium are read together.
        """
        ...

    def put(self, keys: Sequence[bytes], rows: Sequence[memoryview]) -> Ticket:
        """Keep each row under its key; a key that is there already is OK at once."""
        ...

    def delete(self, keys: Sequence[bytes]) -> None:
        """Forget these keys: `lookup` and `get` find them no more."""
        ...

    def poll(self) -> list[Ticket]:
        """The tickets that are done since the last call, overdue ones too: poll every 50 ms while some are out."""
        ...

    def reason(self, key: bytes) -> str | None:
        """Why `key` is not here, in words ("evicted from disk 12 min ago"); None when nothing is known of it."""
        ...

    def figures(self) -> Sequence[TierFigures]:
        """One for each tier."""
        ...

    def close(self) -> None:
        """Finish what is in flight, for a bounded time, and let go of files, threads and connections."""
        ...


def evicted_reason(name: str, age: float | None) -> str | None:
    """ "evicted from disk 12 min ago". age: seconds since then, None when that is not known."""
    if age is None:
        return None
    minutes, seconds = divmod(int(age), 60)
    return f"evicted from {name} {f'{minutes} min' if minutes else f'{seconds} s'} ago"


def group_key(key: bytes, group: int) -> bytes:
    """The key of a group's row: chain keys are equal for all groups of a position. Group 0 has the chain's own."""
    return key[:-2] + (int.from_bytes(key[-2:], "big") ^ group).to_bytes(2, "big")
