"""Desk: hands a store's work to threads and its tickets back, each once and by its deadline.

    put, get ──> Job ──> Lane (queue ──> threads) ──> job.settle, job.deliver ──> poll() ──> Ticket
                  └────────────── deadline ──────────────────────────────────────────^

A thread that hangs in the medium keeps its lane but nobody's ticket: it writes into rows through `Job.deliver` alone,
which does nothing once the ticket is done.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Literal, TypeVar

from kvtrove.kv.tiers.store import Outcome, Ticket, TierFigures

log = logging.getLogger(__name__)
T = TypeVar("T")

SLOWEST = 50e6
"""Bytes per second below which a medium counts as hanging."""
RECENT = 256
"""Reads over which latency and rate are measured."""


class Job:
    """A ticket on its way. Threads settle its keys; the first settlement of a key counts.

    rows: of a get, the caller's memory, touched while the ticket is not done and by `deliver` alone.
    """

    __slots__ = ("_lock", "_on_end", "deadline", "left", "rows", "source", "started", "ticket")

    def __init__(
        self,
        ticket: Ticket,
        rows: Sequence[memoryview],
        started: float,
        deadline: float,
        source: str,
        on_end: Callable[[Job], None],
    ) -> None:
        self.ticket = ticket
        self.rows = rows
        self.started = started
        self.deadline = deadline
        self.source = source
        self.left = len(ticket.keys)
        self._lock = threading.Lock()
        self._on_end = on_end

    @property
    def is_over(self) -> bool:
        return self.left == 0

    def settle(self, i: int, outcome: Outcome, nbytes: int = 0) -> None:
        """Key i ended so. nbytes: of its row, where the outcome is OK."""
        with self._lock:
            last = self._settle(i, outcome, nbytes)
        if last:
            self._on_end(self)

    def deliver(self, i: int, content: memoryview) -> None:
        """Copy a verified row to where the caller wants it: OK, or MISS when it has another length."""
        with self._lock:
            if self.left == 0 or self.ticket.outcomes[i] is not None:
                return
            fits = content.nbytes == self.rows[i].nbytes
            if fits:
                self.rows[i][:] = content
            last = self._settle(i, Outcome.OK if fits else Outcome.MISS, content.nbytes if fits else 0)
        if last:
            self._on_end(self)

    def end(self, outcome: Outcome) -> None:
        """Settle every key that has no outcome yet."""
        with self._lock:
            last = False
            for i, known in enumerate(self.ticket.outcomes):
                last = (known is None and self._settle(i, outcome, 0)) or last
        if last:
            self._on_end(self)

    def _settle(self, i: int, outcome: Outcome, nbytes: int) -> bool:
        if self.left == 0 or self.ticket.outcomes[i] is not None:
            return False
        self.ticket.outcomes[i] = outcome
        self.ticket.sources[i] = self.source
        self.ticket.nbytes += nbytes
        self.left -= 1
        return self.left == 0


class Lane:
    """A queue and the daemon threads that empty it, started with the first work."""

    def __init__(self, name: str, threads: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._threads = threads
        self._clock = clock
        self._queue: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._started: list[threading.Thread] = []
        self._running: dict[int, float] = {}  # thread -> when it took its work
        self._lock = threading.Lock()

    def submit(self, work: Callable[..., None], *args: Any) -> None:
        with self._lock:
            if len(self._started) < self._threads:
                thread = threading.Thread(target=self._serve, name=self.name, daemon=True)
                self._started.append(thread)
                thread.start()
        self._queue.put((work, args))

    def call(self, work: Callable[..., T], *args: Any) -> Future[T]:
        """As `submit`; the future has what the work returns, or raises."""
        future: Future[T] = Future()
        self.submit(_answer, future, work, *args)
        return future

    def busy_for(self) -> float:
        """Seconds that the longest running work has taken so far; 0 when nothing runs."""
        running = list(self._running.values())
        return self._clock() - min(running) if running else 0.0

    def close(self, seconds: float) -> bool:
        """Finish what is queued. False when a thread still hangs after `seconds`: it is left behind."""
        for _ in self._started:
            self._queue.put(None)
        until = time.monotonic() + seconds
        for thread in self._started:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._started)

    def _serve(self) -> None:
        me = threading.get_ident()
        while (item := self._queue.get()) is not None:
            work, args = item
            self._running[me] = self._clock()
            try:
                work(*args)
            except Exception:
                log.exception("%s: work failed in a way that it does not expect", self.name)
                for job in args:
                    if isinstance(job, Job):
                        job.end(Outcome.ERROR)
            finally:
                del self._running[me]


def _answer(future: Future[T], work: Callable[..., T], *args: Any) -> None:
    try:
        future.set_result(work(*args))
    except Exception as error:
        future.set_exception(error)


class Desk:
    """Tickets of one store, and what they add up to.

    seconds: that a ticket may take at most, plus those that its bytes take at SLOWEST. on_done: see `BlockStore`.
    """

    def __init__(self, name: str, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.seconds = seconds
        self.clock = clock
        self.on_done: Callable[[], None] | None = None
        self.counts: Counter[str] = Counter()  # hits, misses, stored, declined, evicted, bytes_read, bytes_written
        self.errors: Counter[str] = Counter()
        self._out: dict[int, Job] = {}
        self._done: deque[Ticket] = deque()
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self._lock = threading.Lock()

    def open(
        self, kind: Literal["get", "put"], keys: Sequence[bytes], rows: Sequence[memoryview], source: str = ""
    ) -> Job:
        """A job for these keys; a ticket without keys is done at once."""
        now = self.clock()
        deadline = now + self.seconds + sum(row.nbytes for row in rows) / SLOWEST
        into = rows if kind == "get" else ()
        job = Job(Ticket(kind, tuple(keys)), into, now, deadline, source or self.name, self._finish)
        with self._lock:
            self._out[id(job)] = job
        if not keys:
            self._finish(job)
        return job

    def poll(self) -> list[Ticket]:
        """Tickets that are done since the last call, after ending those past their deadline."""
        if self._out:
            now = self.clock()
            with self._lock:
                overdue = [job for job in self._out.values() if job.deadline <= now]
            for job in overdue:
                job.end(Outcome.TIMEOUT)
        done = []
        while self._done:
            done.append(self._done.popleft())
        return done

    def close(self) -> None:
        """End every ticket that is out: nobody will answer it."""
        with self._lock:
            jobs = list(self._out.values())
        for job in jobs:
            job.end(Outcome.TIMEOUT)

    def figures(
        self, name: str, *, entries: int, nbytes: int, budget: int, notices: tuple[str, ...] = ()
    ) -> TierFigures:
        with self._lock:
            recent, counts, errors = list(self._recent), self.counts.copy(), dict(self.errors)
        seconds = sorted(took for _, took in recent)
        total = sum(seconds)
        return TierFigures(
            name,
            entries=entries,
            nbytes=nbytes,
            budget=budget,
            **{key: counts[key] for key in ("hits", "misses", "stored", "declined", "evicted")},
            bytes_read=counts["bytes_read"],
            bytes_written=counts["bytes_written"],
            read_rate=sum(size for size, _ in recent) / total if total else 0.0,
            latency_p50=seconds[len(seconds) // 2] if seconds else 0.0,
            latency_p99=seconds[len(seconds) * 99 // 100] if seconds else 0.0,
            errors=errors,
            notices=notices,
        )

    def count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] += number

    def error(self, reason: str) -> None:
        with self._lock:
            self.errors[reason] += 1

    def _finish(self, job: Job) -> None:
        ticket = job.ticket
        ticket.seconds = self.clock() - job.started
        outcomes = Counter(ticket.outcomes)
        good = outcomes[Outcome.OK]
        with self._lock:
            self._out.pop(id(job), None)
            if ticket.kind == "get":
                self.counts["hits"] += good
                self.counts["misses"] += len(ticket.keys) - good
                self.counts["bytes_read"] += ticket.nbytes
                if good:
                    self._recent.append((ticket.nbytes, ticket.seconds))
            else:
                self.counts["declined"] += outcomes[Outcome.DECLINED]
            for outcome in (Outcome.CHECKSUM, Outcome.TIMEOUT):
                if outcomes[outcome]:
                    self.errors[outcome.value] += outcomes[outcome]
        ticket.done = True
        self._done.append(ticket)
        if self.on_done is not None:
            self.on_done()


class AtDesk:
    """A store whose tickets a desk keeps: those that are done, and who is told of them."""

    _desk: Desk

    @property
    def on_done(self) -> Callable[[], None] | None:
        return self._desk.on_done

    @on_done.setter
    def on_done(self, call: Callable[[], None] | None) -> None:
        self._desk.on_done = call

    def poll(self) -> list[Ticket]:
        return self._desk.poll()
