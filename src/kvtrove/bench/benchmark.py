"""A whole load test: probe the server, run the load (once, or at rising rates), summarise."""

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import takewhile
from random import Random
from typing import Protocol

import httpx

from kvtrove.bench.arrivals import arrivals
from kvtrove.bench.client import Client
from kvtrove.bench.drive import Driver, Watch
from kvtrove.bench.probe import Probe, probe
from kvtrove.bench.record import Record
from kvtrove.bench.settings import Load, Slo, Target, Workload
from kvtrove.bench.summary import Summary, summarise
from kvtrove.bench.supply import Supply, supply
from kvtrove.bench.words import Words
from kvtrove.bench.workload import Conversation, Writer
from kvtrove.config import ConfigError

LAG_WORTH_A_NOTE = 0.02  # seconds


@dataclass(frozen=True)
class Settings:
    """Everything about a load test. rates: arrivals per second to try one after the other instead of `load.rate`.

    With neither rate nor concurrency, a trace runs at its own times and everything else one request at a time.
    """

    target: Target
    load: Load = field(default_factory=Load)
    workload: Workload = field(default_factory=Workload)
    slo: Slo = field(default_factory=Slo)
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.rates:
            if self.load.rate is None and self.load.concurrency is None and self.workload.trace is None:
                object.__setattr__(self, "load", replace(self.load, concurrency=1))
            return
        if not self.slo:
            raise ConfigError("rates looks for the highest rate inside the SLO: give slo_ttft, slo_tpot or both")
        if self.load.rate is not None or self.load.concurrency is not None:
            raise ConfigError("rates takes the place of rate and concurrency; give one of the three")
        if min(self.rates) <= 0:
            raise ConfigError(f"rates: {min(self.rates):g} must be larger than zero")
        object.__setattr__(self, "rates", tuple(sorted(set(self.rates))))

    @property
    def loads(self) -> list[Load]:
        """One per run. Each rate has a seed of its own: the same text would be found in the server's cache."""
        if not self.rates:
            return [self.load]
        return [replace(self.load, rate=rate, seed=self.load.seed + n) for n, rate in enumerate(self.rates)]


@dataclass(frozen=True)
class Run:
    load: Load
    summary: Summary
    records: Sequence[Record]


@dataclass(frozen=True)
class Result:
    """runs: one, or one per rate up to the first that misses the goal. interrupted: stopped by hand before its end."""

    settings: Settings
    probe: Probe
    started: datetime
    runs: Sequence[Run]
    interrupted: bool

    @property
    def sustained(self) -> Run | None:
        """Goodput as DistServe defines it: the run with the highest rate that, like all lower ones, meets the goal."""
        best = None
        for run in self.runs:
            if not meets(run, self.settings.slo):
                return best
            best = run
        return best

    @property
    def notes(self) -> list[str]:
        """What the reader must know before trusting a figure."""
        return [*self.probe.notes, *_notes(self.settings, self.runs)]


class Audience(Watch, Protocol):
    """A Watch that is told when a run begins. total: requests, None when nobody knows."""

    def begin(self, load: Load, total: int | None) -> None: ...


def meets(run: Run, slo: Slo) -> bool:
    share = run.summary.value("slo_share")
    return share is not None and share >= slo.share


async def benchmark(
    settings: Settings, audience: Audience, transport: httpx.AsyncBaseTransport | None = None
) -> Result:
    """Run the test. ProbeError when the server cannot be measured; being cancelled (Ctrl-C) ends it with what there is.

    Times are the running event loop's.
    """
    started = datetime.now(UTC)
    runs: list[Run] = []
    interrupted = False
    clock = asyncio.get_running_loop().time
    async with Client(settings.target, clock, transport) as client:
        found = await probe(client)
        for load in settings.loads:
            words = Words(load.seed)
            writer = Writer(words, found.tokens_per_word, found.overhead)
            driver = Driver(client.send, writer, clock, audience, load.warmup)
            interrupted = await _drive(driver, load, settings.workload, audience)
            runs.append(Run(load, summarise(driver.records, settings.slo), driver.records))
            if interrupted or (settings.rates and not meets(runs[-1], settings.slo)):
                break
    return Result(settings, found, started, runs, interrupted)


async def _drive(driver: Driver, load: Load, workload: Workload, audience: Audience) -> bool:
    """One run; True when it was cancelled."""
    random = Random(load.seed)
    work = supply(workload, load, random)
    audience.begin(load, work.requests)
    gc.collect()
    gc.freeze()  # a collection that walks the workload would show as latency
    try:
        await _run(driver, load, work, random)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        return True
    finally:
        gc.unfreeze()
    return False


async def _run(driver: Driver, load: Load, work: Supply, random: Random) -> None:
    if load.rate is not None:
        due: Iterator[tuple[float, Conversation]] = zip(
            arrivals(load.arrivals, load.rate, load.burstiness, random), work.conversations, strict=False
        )
    elif load.concurrency is None:
        due = ((conversation.arrival or 0.0, conversation) for conversation in work.conversations)
    else:
        return await driver.closed_loop(work.conversations, load.concurrency, load.duration)
    end = math.inf if load.duration is None else load.duration
    await driver.open_loop(takewhile(lambda arrival: arrival[0] < end, due))


def _notes(settings: Settings, runs: Sequence[Run]) -> list[str]:
    notes = []
    lags = [lag for run in runs if (lag := run.summary.value("lag_p99")) is not None]
    if lags and max(lags) > LAG_WORTH_A_NOTE:
        notes.append(
            f"this client was late: p99 {max(lags) * 1e3:.0f} ms between due and sent, which is part of the latencies; "
            "run it on a machine of its own, or with less load"
        )
    if any(run.records and not run.summary.counts.sent for run in runs):
        notes.append("every request was warm-up: nothing is left to measure; lower --warmup or send more")
    if len(runs) > 1 and settings.workload.prompts:
        notes.append("the same prompts were sent at every rate: later rates may find them in the server's cache")
    return notes
