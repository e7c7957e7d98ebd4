"""Whole answers to requests that were asked before, word for word and without randomness. Off by default.

A key covers the model and its weights, the form of its cache, the tenant, the route and every field of the request that
can change the answer, so an answer is found by exactly the request that made it. Only answers without randomness (at
temperature 0, vectors, scores) that came to their end are kept. A store that fails is a miss.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import Request

from kvtrove.config import ConfigError, parse_size

if TYPE_CHECKING:
    from kvtrove.server.errors import ApiError
    from kvtrove.server.job import Job
    from kvtrove.server.respond import Endpoint

log = logging.getLogger(__name__)

HEADER = "x-kvtrove-response-cache"
SAME_ANSWER = frozenset(
    {"user", "metadata", "safety_identifier", "service_tier", "prompt_cache_key", "priority", "store"}
)
"""Fields that say something about a request and nothing about its answer."""
LARGEST_SHARE = 16
"""An answer larger than this part of the store is not kept: it would push out all others."""
REDIS_TIMEOUT = 0.25  # seconds


class Store(Protocol):
    """Bytes under a key until their time is over. Never raises."""

    async def get(self, key: str) -> bytes | None: ...

    async def put(self, key: str, value: bytes) -> None: ...


class MemoryStore:
    """The least recently used leave first. ttl: seconds. Event loop only."""

    def __init__(self, budget: int, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget, self.ttl, self._clock = budget, ttl, clock
        self.nbytes = 0
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    async def get(self, key: str) -> bytes | None:
        found = self._kept.get(key)
        if found is None:
            return None
        if self._clock() >= found[0]:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return found[1]

    async def put(self, key: str, value: bytes) -> None:
        if len(value) > self.budget // LARGEST_SHARE:
            return
        self._drop(key)
        self._kept[key] = self._clock() + self.ttl, value
        self.nbytes += len(value)
        while self.nbytes > self.budget:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: str) -> None:
        _, value = self._kept.pop(key, (0.0, b""))
        self.nbytes -= len(value)


class RedisStore:
    """Answers that several servers share. url: redis://[:password@]host[:port]/[db]. Raises ConfigError for others."""

    def __init__(self, url: str, ttl: float) -> None:
        try:
            from redis.asyncio import Redis
        except ModuleNotFoundError as error:
            raise ConfigError("response_cache: redis:// needs the package redis: pip install redis") from error
        try:
            self._redis = Redis.from_url(
                url, socket_timeout=REDIS_TIMEOUT, socket_connect_timeout=REDIS_TIMEOUT, decode_responses=False
            )
        except ValueError as error:
            raise ConfigError(f"response_cache: {error}; write for example redis://localhost:6379/0") from error
        self.ttl = ttl
        self._told = False

    async def get(self, key: str) -> bytes | None:
        try:
            value = await self._redis.get(f"kvtrove:response:{key}")
        except Exception as error:
            self._tell(error)
            return None
        return value if isinstance(value, bytes) else None

    async def put(self, key: str, value: bytes) -> None:
        try:
            await self._redis.set(f"kvtrove:response:{key}", value, px=max(1, int(self.ttl * 1000)))
        except Exception as error:
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        level = logging.DEBUG if self._told else logging.WARNING
        self._told = True
        log.log(level, "the response cache does not answer, so requests are computed: %s", error)


@dataclass(frozen=True)
class KeptAnswer:
    """made: seconds since 1970. answer: a JSON value, or the events of a stream."""

    made: float
    answer: Any = None
    events: tuple[str, ...] | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {HEADER: f"hit; age={max(0, round(time.time() - self.made))}"}

    def marked(self) -> Any:
        """The answer, which says in its `kvtrove` object that it was not computed now."""
        age = max(0.0, round(time.time() - self.made, 3))
        return self.answer | {"kvtrove": self.answer.get("kvtrove", {}) | {"response_cache": {"age_seconds": age}}}

    def encode(self) -> bytes:
        return json.dumps({"made": self.made, "answer": self.answer, "events": self.events}).encode()

    @classmethod
    def decode(cls, value: bytes) -> KeptAnswer | None:
        """None for what is no kept answer: others may write to a shared store."""
        try:
            read = json.loads(value)
            made, answer, events = read["made"], read["answer"], read["events"]
            well = isinstance(made, float) and (
                isinstance(answer, dict) or (isinstance(events, list) and all(isinstance(e, str) for e in events))
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return cls(made, answer, None if events is None else tuple(events)) if well else None


class ResponseCache:
    """identity: of weights, adapter and cache, given the model that a request names. sampling_defaults: of the
    checkpoint, which may say a temperature.

    on_lookup: told whether an answer was found.
    """

    def __init__(
        self,
        store: Store | None,
        identity: Callable[[str | None], bytes],
        sampling_defaults: Mapping[str, Any],
        on_lookup: Callable[[bool], None],
    ) -> None:
        self._store, self._identity, self._defaults, self._on_lookup = store, identity, sampling_defaults, on_lookup

    def key(self, request: Request, job: Job, stream: bool) -> str | None:
        """None for a request whose answer is neither looked up nor kept."""
        body = job.body
        if self._store is None or "no-store" in request.headers.get("cache-control", "").lower():
            return None
        temperature = getattr(body, "temperature", None)
        effective = self._defaults.get("temperature", 1.0) if temperature is None else temperature
        draws = effective != 0 and getattr(body, "draws", True)
        if draws or body.cache_report or getattr(body, "previous_response_id", None):
            return None
        asked = body.model_dump(mode="json", exclude_none=True, exclude=set(SAME_ANSWER))
        parts = (job.caller.route, job.caller.tenant.salt, stream, asked)
        text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        identity = self._identity(getattr(body, "model", None))
        return hashlib.sha256(identity + text.encode()).hexdigest()

    async def get(self, request: Request, key: str) -> KeptAnswer | None:
        """`Cache-Control: no-cache` asks for an answer that is computed now; it replaces the one that is kept."""
        if self._store is None or "no-cache" in request.headers.get("cache-control", "").lower():
            return None
        value = await self._store.get(key)
        found = None if value is None else KeptAnswer.decode(value)
        self._on_lookup(found is not None)
        return found

    async def put(self, key: str, answer: KeptAnswer) -> None:
        if self._store is not None:
            await self._store.put(key, answer.encode())


def store_of(setting: str | None, ttl: float) -> Store | None:
    """setting: a size for a store in memory, or a redis:// URL; None is no store. ConfigError for anything else."""
    if setting is None:
        return None
    if ttl <= 0:
        raise ConfigError(f"response_cache_ttl: {ttl:g} must be larger than zero seconds")
    if "://" in setting:
        return RedisStore(setting, ttl)
    return MemoryStore(parse_size(setting, "response_cache"), ttl)


class Recorded:
    """An endpoint whose answer is kept when it has come to its end."""

    def __init__(self, endpoint: Endpoint, cache: ResponseCache, key: str) -> None:
        self._endpoint, self._cache, self._key = endpoint, cache, key
        self.keep_alive = endpoint.keep_alive

    async def submit(self) -> None:
        await self._endpoint.submit()

    async def events(self) -> AsyncGenerator[str, None]:
        seen: list[str] = []
        async for event in self._endpoint.events():
            seen.append(event)
            yield event
        await self._cache.put(self._key, KeptAnswer(time.time(), events=tuple(seen)))

    async def answer(self) -> Any:
        answer = await self._endpoint.answer()
        await self._cache.put(self._key, KeptAnswer(time.time(), answer))
        return answer

    def error_event(self, error: ApiError) -> str:
        return self._endpoint.error_event(error)
