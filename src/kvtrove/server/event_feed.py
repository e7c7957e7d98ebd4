"""What happens to blocks, for routers: vLLM's KV events, as server-sent events instead of ZMQ messages.

engine's thread: on_event ──> queue ──one call per burst──> event loop: a numbered batch ──> every subscriber
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any

import numpy as np

from kvtrove.engine import Engine
from kvtrove.kv.events import KVEvent
from kvtrove.server.engine_thread import EngineThread

REMEMBERED = 1000
"""Batches that a subscriber who comes back can still get."""
MOST_WAITING = 1000
"""Batches that a subscriber may be late; then its stream ends, and it has to come back."""


class EventFeed:
    """Of one engine. It costs nothing before the first subscriber has come."""

    def __init__(self, engine: EngineThread) -> None:
        self._engine = engine
        self._news: deque[KVEvent] = deque()  # filled by the engine's thread
        self._told = False  # the event loop has been called and has not come yet
        self._loop: asyncio.AbstractEventLoop | None = None
        self._batches: deque[tuple[int, str]] = deque(maxlen=REMEMBERED)
        self._count = 0
        self._subscribers: set[asyncio.Queue[tuple[int, str] | None]] = set()

    async def subscribe(self, last_id: int | None, keep_alive: float) -> AsyncIterator[str]:
        """Server-sent events: what the cache holds now, or what came after batch `last_id`; then all news."""
        queue: asyncio.Queue[tuple[int, str] | None] = asyncio.Queue(MOST_WAITING)
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            await self._engine.call(self._listen)
        self._subscribers.add(queue)
        try:
            first = self._batches[0][0] if self._batches else self._count + 1
            if last_id is not None and first - 1 <= last_id <= self._count:
                for number, batch in [one for one in self._batches if one[0] > last_id]:
                    yield _sse(number, batch)
            else:
                held = await self._engine.call(held_blocks)
                yield _sse(self._count, _batch([KVEvent("cleared", b"", 0), *held], self._engine.engine))
            while True:
                try:
                    news = await asyncio.wait_for(queue.get(), keep_alive)
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                if news is None:
                    return
                yield _sse(*news)
        finally:
            self._subscribers.discard(queue)

    def _listen(self, engine: Engine) -> None:
        engine.kv.on_event = self._on_event

    def _on_event(self, event: KVEvent) -> None:
        self._news.append(event)
        if not self._told and self._loop is not None:
            self._told = True
            self._loop.call_soon_threadsafe(self._publish)

    def _publish(self) -> None:
        self._told = False
        events = []
        while self._news:
            events.append(self._news.popleft())
        if not events:
            return
        self._count += 1
        batch = self._count, _batch(events, self._engine.engine)
        self._batches.append(batch)
        for queue in list(self._subscribers):
            if queue.full():
                queue.get_nowait()
                queue.put_nowait(None)
                self._subscribers.discard(queue)
            else:
                queue.put_nowait(batch)


def held_blocks(engine: Engine) -> list[KVEvent]:
    """Every block that can be found now, parents before children."""
    published = sorted((b for b in engine.kv.pool.blocks if b.published), key=lambda block: block.index)
    return [KVEvent("sealed", b.key, b.group, b.parent, b.tokens) for b in published]


def _batch(events: Iterable[KVEvent], engine: Engine) -> str:
    """vLLM's KVEventBatch in JSON."""
    medium = "GPU" if engine.runner.arena.device.startswith("cuda") else "CPU"
    told = [_written(event, engine.config.block_size, medium) for event in events]
    return json.dumps({"ts": time.time(), "events": told, "data_parallel_rank": None})


def _written(event: KVEvent, block_size: int, medium: str) -> dict[str, Any]:
    """BlockStored, BlockRemoved or AllBlocksCleared. A hash is the first 64 bits of a key."""
    if event.kind == "cleared":
        return {"type": "AllBlocksCleared"}
    hashes = [_hash(event.key)]
    if event.kind == "evicted":
        return {"type": "BlockRemoved", "block_hashes": hashes, "medium": medium, "group_idx": event.group}
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": _hash(event.parent) if event.parent else None,
        "token_ids": np.frombuffer(event.tokens, "<i4").tolist(),
        "block_size": block_size,
        "lora_id": None,
        "lora_name": None,
        "medium": medium,
        "group_idx": event.group,
    }


def _hash(key: bytes) -> int:
    return int.from_bytes(key[:8], "big")


def _sse(number: int, batch: str) -> str:
    return f"id: {number}\nevent: kv\ndata: {batch}\n\n"
