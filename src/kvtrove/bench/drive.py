"""Starts conversations when they are due and holds them: one task per conversation, one record per request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from kvtrove.bench.client import Exchange
from kvtrove.bench.record import Record
from kvtrove.bench.workload import Conversation, Writer

Messages = Sequence[Mapping[str, str]]
Send = Callable[[Messages, int | None, Exchange], Awaitable[None]]


class Watch(Protocol):
    """Looks on while requests run."""

    def started(self) -> None: ...

    def finished(self, record: Record) -> None: ...


class Driver:
    """Runs conversations against `send`. Times in the records are seconds since the first arrival was due.

    clock: what `send` stamps with; sleeping is asyncio's. warmup: conversations whose records say so.
    records: in the order in which requests ended.
    """

    def __init__(self, send: Send, writer: Writer, clock: Callable[[], float], watch: Watch, warmup: int = 0) -> None:
        self.send, self.writer, self.clock, self.watch, self.warmup = send, writer, clock, watch, warmup
        self.records: list[Record] = []
        self._start = 0.0

    async def open_loop(self, arrivals: Iterable[tuple[float, Conversation]]) -> None:
        """Begin each conversation at its time, whether or not earlier ones have ended."""
        self._start = self.clock()
        async with asyncio.TaskGroup() as running:
            for number, (arrival, conversation) in enumerate(arrivals):
                await self._sleep_until(arrival)
                running.create_task(self._hold(number, conversation, arrival))

    async def closed_loop(
        self, conversations: Iterable[Conversation], concurrency: int, duration: float | None
    ) -> None:
        """Keep `concurrency` conversations going; none begins after `duration` seconds."""
        self._start = self.clock()
        waiting = enumerate(conversations)
        async with asyncio.TaskGroup() as running:
            for _ in range(concurrency):
                running.create_task(self._work(waiting, duration))

    async def _work(self, waiting: Iterator[tuple[int, Conversation]], duration: float | None) -> None:
        for number, conversation in waiting:
            now = self.clock() - self._start
            if duration is not None and now >= duration:
                return
            await self._hold(number, conversation, now)

    async def _hold(self, number: int, conversation: Conversation, arrival: float) -> None:
        """All turns of a conversation, until one fails: without an answer there is nothing to go on from."""
        opening = [{"role": m.role, "content": self.writer.write(m.content)} for m in conversation.opening]
        said: list[dict[str, str]] = []
        for place, turn in enumerate(conversation.turns):
            if place:
                arrival = self.clock() - self._start + turn.think_time
                await self._sleep_until(arrival)
            if not conversation.remembers:
                said = []
            beside = 0 if said else self.writer.overhead  # of a later turn, the past pays for the chat template
            said.append({"role": "user", "content": self.writer.write(turn.content, beside)})
            exchange = Exchange()
            self.watch.started()
            try:
                await self.send([*opening, *said], turn.output_tokens, exchange)
            finally:
                record = self._record(exchange, number, place, conversation, arrival)
                self.records.append(record)
                self.watch.finished(record)
            if not record.ok:
                return
            said.append({"role": "assistant", "content": exchange.transcript.text})

    def _record(self, exchange: Exchange, number: int, turn: int, conversation: Conversation, arrival: float) -> Record:
        transcript = exchange.transcript
        arrivals = transcript.arrivals()
        return Record(
            conversation=number,
            turn=turn,
            num_turns=len(conversation.turns),
            arrival=arrival,
            sent=exchange.sent - self._start,
            ended=exchange.ended - self._start,
            times=np.array([time - self._start for time, _ in arrivals]),
            tokens=np.array([float(tokens) for _, tokens in arrivals]),
            status=exchange.status,
            error=exchange.error,
            prompt_tokens=transcript.prompt_tokens,
            cached_tokens=transcript.cached_tokens,
            token_source=transcript.source,
            warmup=number < self.warmup,
        )

    async def _sleep_until(self, time: float) -> None:
        wait = self._start + time - self.clock()
        if wait > 0:
            await asyncio.sleep(wait)
