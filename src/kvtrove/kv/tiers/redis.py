"""RedisStore: rows that several engines share, signed, so that nobody else's bytes become keys and values of a model.

    lookup ──> what is known ──(not yet: EXISTS in a thread)──> next lookup
    get ─────> pipelined MGETs ──> CRC-32C, HMAC ──> rows of the caller
    put ─────> copy ──> SET with a time to live

    value: | header 128 | row | HMAC-SHA256 of both, 32 |        name: kvtrove:kv:1:<key in hex>

A slow or dead server is a miss: threads wait for it, with timeouts, and after three failures nobody does for a while.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvtrove.config import ConfigError, Environment
from kvtrove.kernels import crc32c
from kvtrove.kv.tiers.admission import Admission, Admit
from kvtrove.kv.tiers.desk import AtDesk, Desk, Job, Lane
from kvtrove.kv.tiers.health import Health
from kvtrove.kv.tiers.layout import HEADER_BYTES, Header, format_field, now, read_header
from kvtrove.kv.tiers.store import Found, Outcome, Ticket, TierFigures

PREFIX = "kvtrove:kv:1:"
MAC_BYTES = 32
MGET_BYTES = 8 << 20  # of rows asked for in one MGET
SET_BYTES = 8 << 20  # of rows sent in one pipeline
HERE_SECONDS, MISSING_SECONDS = 30.0, 2.0  # for which an answer of EXISTS is believed
REMEMBERED = 65_536  # keys
READERS = 2  # threads, with a connection each
CLOSE_SECONDS = 2.0
LEAST_KEY_BYTES = 16
KEY_VARIABLE = "KVTROVE_TIER_KEY"


@dataclass(frozen=True)
class RedisSettings:
    """url: redis://[:password@]host[:port]/db, rediss:// or unix://. size: bytes that this engine keeps there at most.

    ttl: seconds that a row lives after it was written or read last. timeout: of a connection, of one answer, and of a
    ticket beyond what its bytes take. in_flight: bytes of rows that may wait to be sent. key: signs; from the
    environment when it is None.
    """

    url: str
    size: int = 4 << 30
    ttl: float = 86_400.0
    admit: Admit = "first"
    timeout: float = 0.5
    in_flight: int = 64 << 20
    key: bytes | None = field(default=None, repr=False)


class RedisStore(AtDesk):
    """A `BlockStore` on a Redis server. Raises ConfigError for a URL it cannot read, or without a key to sign with."""

    def __init__(
        self,
        settings: RedisSettings,
        format_id: str = "",
        fingerprint: bytes = b"",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = "redis"
        self.settings = settings
        self._client, where = _client(settings)
        self._key = _signing_key(settings)
        self._format = format_field(format_id)
        self._fingerprint = fingerprint.ljust(32, b"\0")
        self._clock = clock
        self._desk = Desk(self.name, settings.timeout, clock)
        self._health = Health(f"tier redis, {where}", self._desk.error, clock)
        self._signatures = Health(f"tier redis, {where}", self._desk.error, clock)
        self._readers = Lane(f"{self.name} reader", READERS, clock)
        self._writer = Lane(f"{self.name} writer", 1, clock)
        self._admission = Admission(settings.admit)
        self._known: OrderedDict[bytes, tuple[Found, float]] = OrderedDict()  # key -> answer, until when it is believed
        self._own: OrderedDict[bytes, int] = OrderedDict()  # what this engine has written, oldest first
        self._own_bytes = 0
        self._in_flight = 0
        self._lock = threading.Lock()

    # ---- the store ----

    def lookup(self, keys: Sequence[bytes]) -> Sequence[Found]:
        if not self._is_usable:
            return [Found.MISSING] * len(keys)
        now_, found, unknown = self._clock(), [], []
        for key in keys:
            answer, until = self._known.get(key, (Found.MISSING, 0.0))
            if until <= now_:
                answer = Found.UNKNOWN_YET
                unknown.append(key)
            found.append(answer)
        if unknown:
            self._learn(unknown, Found.UNKNOWN_YET, self.settings.timeout)
            self._readers.submit(self._ask, unknown)
        return found

    def get(self, keys: Sequence[bytes], rows: Sequence[memoryview]) -> Ticket:
        job = self._desk.open("get", keys, rows)
        if not self._is_usable:
            job.end(Outcome.MISS)
        else:
            for part in _parts([row.nbytes for row in rows], MGET_BYTES):
                self._readers.submit(self._read, job, part)
        return job.ticket

    def put(self, keys: Sequence[bytes], rows: Sequence[memoryview]) -> Ticket:
        job = self._desk.open("put", keys, rows)
        taken: list[tuple[int, bytes]] = []
        for i, (key, row) in enumerate(zip(keys, rows, strict=True)):
            if self._known.get(key, (Found.MISSING, 0.0))[0] is Found.HERE:
                job.settle(i, Outcome.OK, row.nbytes)
            elif not self._is_usable or not self._fits(row.nbytes) or not self._admission.admits(key):
                job.settle(i, Outcome.DECLINED)
            else:
                with self._lock:
                    self._in_flight += row.nbytes
                taken.append((i, bytes(row)))
        for part in _parts([len(content) for _, content in taken], SET_BYTES):
            self._writer.submit(self._write, job, [taken[i] for i in part])
        return job.ticket

    def delete(self, keys: Sequence[bytes]) -> None:
        self._learn(keys, Found.MISSING, MISSING_SECONDS)
        self._writer.submit(self._delete, list(keys))

    def reason(self, key: bytes) -> str | None:
        return None

    def figures(self) -> Sequence[TierFigures]:
        return (
            self._desk.figures(
                self.name,
                entries=len(self._own),
                nbytes=self._own_bytes + self._in_flight,
                budget=self.settings.size,
                notices=self._health.notices + self._signatures.notices,
            ),
        )

    def close(self) -> None:
        self._writer.close(CLOSE_SECONDS)
        self._readers.close(CLOSE_SECONDS)
        self._desk.close()
        self._client.close()

    # ---- in threads ----

    def _ask(self, keys: list[bytes]) -> None:
        answers = self._try(lambda pipe: [pipe.exists(_name(key)) for key in keys])
        if answers is None:
            self._learn(keys, Found.MISSING, MISSING_SECONDS)
            return
        self._learn([key for key, n in zip(keys, answers, strict=True) if n], Found.HERE, HERE_SECONDS)
        self._learn([key for key, n in zip(keys, answers, strict=True) if not n], Found.MISSING, MISSING_SECONDS)

    def _read(self, job: Job, part: list[int]) -> None:
        """One MGET; the time to live of what it finds begins again."""
        if job.is_over:
            return
        names = [_name(job.ticket.keys[i]) for i in part]
        ttl = self._ttl_ms()
        answers = self._try(lambda pipe: [pipe.mget(names), *(pipe.pexpire(name, ttl) for name in names)])
        for i, value in zip(part, answers[0] if answers is not None else [None] * len(part), strict=True):
            key = job.ticket.keys[i]
            if value is None:
                self._learn([key], Found.MISSING, MISSING_SECONDS)
                job.settle(i, Outcome.MISS if answers is not None else Outcome.ERROR)
                continue
            row = self._verified(key, memoryview(value))
            if row is None:
                self._learn([key], Found.MISSING, HERE_SECONDS)
                job.settle(i, Outcome.CHECKSUM)
            else:
                job.deliver(i, row)

    def _write(self, job: Job, rows: list[tuple[int, bytes]]) -> None:
        keys = [job.ticket.keys[i] for i, _ in rows]
        values = [self._sealed(key, content) for key, (_, content) in zip(keys, rows, strict=True)]
        ttl = self._ttl_ms()
        answers = self._try(
            lambda pipe: [pipe.set(_name(key), value, px=ttl) for key, value in zip(keys, values, strict=True)]
        )
        with self._lock:
            self._in_flight -= sum(len(content) for _, content in rows)
        if answers is None:
            for i, _ in rows:
                job.settle(i, Outcome.ERROR)
            return
        self._learn(keys, Found.HERE, HERE_SECONDS)
        self._desk.count("stored", len(rows))
        self._desk.count("bytes_written", sum(len(content) for _, content in rows))
        for key, (i, content) in zip(keys, rows, strict=True):
            self._own_bytes += len(content) - self._own.pop(key, 0)
            self._own[key] = len(content)
            job.settle(i, Outcome.OK, len(content))
        self._keep_bound()

    def _keep_bound(self) -> None:
        """Delete what this engine wrote first, until the rest is within its size."""
        out = []
        while self._own_bytes > self.settings.size and self._own:
            key, nbytes = self._own.popitem(last=False)
            self._own_bytes -= nbytes
            out.append(key)
        if out:
            self._desk.count("evicted", len(out))
            self._learn(out, Found.MISSING, MISSING_SECONDS)
            self._try(lambda pipe: [pipe.unlink(_name(key)) for key in out])

    def _delete(self, keys: list[bytes]) -> None:
        for key in keys:
            self._own_bytes -= self._own.pop(key, 0)
        if keys:
            self._try(lambda pipe: [pipe.unlink(_name(key)) for key in keys])

    def _try(self, fill: Callable[[Any], list[Any]]) -> list[Any] | None:
        """The answers of a pipeline; None when the server fails, is too slow, or rests."""
        import redis

        if not self._health.is_usable:
            return None
        try:
            pipe = self._client.pipeline(transaction=False)
            fill(pipe)
            answers: list[Any] = pipe.execute(raise_on_error=False)  # what it would raise quotes the row
            if refused := next((answer for answer in answers if isinstance(answer, Exception)), None):
                raise refused
        except redis.exceptions.TimeoutError as error:
            self._health.failed("timeout", error)
        except redis.exceptions.ConnectionError as error:
            self._health.failed("no connection", error)
        except redis.exceptions.RedisError as error:
            full = "maxmemory" in str(error)
            self._health.failed("server full" if full else "server error", error)
        else:
            self._health.worked()
            return answers
        return None

    # ---- values ----

    def _sealed(self, key: bytes, content: bytes) -> bytes:
        header = Header(key, len(content), crc32c(content), self._format, self._fingerprint, now()).pack()
        return b"".join((header, content, self._mac(header, content)))

    def _verified(self, key: bytes, value: memoryview) -> memoryview | None:
        """The row of a value that is whole, signed with our key and of this kind; None of any other."""
        header = read_header(value)
        row = value[HEADER_BYTES:-MAC_BYTES] if value.nbytes >= HEADER_BYTES + MAC_BYTES else value[:0]
        if header is None or header.key != key or header.length != row.nbytes or crc32c(row) != header.crc:
            return None
        signed = hmac.compare_digest(self._mac(value[:HEADER_BYTES], row), bytes(value[-MAC_BYTES:]))
        if not signed:
            self._signatures.failed("signature", f"a value was written with another {KEY_VARIABLE}, or forged")
        same = (header.format_id, header.fingerprint) == (self._format, self._fingerprint)
        return row if signed and same else None

    def _mac(self, header: bytes | memoryview, row: bytes | memoryview) -> bytes:
        mac = hmac.new(self._key, header, "sha256")
        mac.update(row)
        return mac.digest()

    # ---- the rest ----

    @property
    def _is_usable(self) -> bool:
        slow = max(self._readers.busy_for(), self._writer.busy_for()) > 4 * self.settings.timeout
        return self._health.is_usable and not slow

    def _fits(self, nbytes: int) -> bool:
        return 0 < nbytes <= self.settings.size and self._in_flight + nbytes <= self.settings.in_flight

    def _ttl_ms(self) -> int:
        return max(1, int(self.settings.ttl * 1000))

    def _learn(self, keys: Sequence[bytes], found: Found, seconds: float) -> None:
        until = self._clock() + seconds
        with self._lock:
            for key in keys:
                self._known[key] = found, until
                self._known.move_to_end(key)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)


def _name(key: bytes) -> str:
    return PREFIX + key.hex()


def _parts(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Indices in order, cut where their sizes pass `most`."""
    parts: list[list[int]] = []
    nbytes = 0
    for i, size in enumerate(sizes):
        if not parts or nbytes + size > most:
            parts.append([])
            nbytes = 0
        parts[-1].append(i)
        nbytes += size
    return parts


def _signing_key(settings: RedisSettings) -> bytes:
    key = settings.key if settings.key is not None else (Environment.read().tier_key or "").encode()
    if len(key) < LEAST_KEY_BYTES:
        raise ConfigError(
            f"tier redis: set {KEY_VARIABLE} to a secret of at least {LEAST_KEY_BYTES} characters, the same for all "
            "engines that share the server (openssl rand -hex 32 makes one): rows are signed with it"
        )
    return key


def _client(settings: RedisSettings) -> tuple[Any, str]:
    """A client that tries once, and where it connects to, without the password."""
    try:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ImportError as error:
        raise ConfigError("tier redis: needs the package redis: pip install 'kvtrove[tiers]'") from error
    try:
        client = redis.Redis.from_url(
            settings.url,
            socket_timeout=settings.timeout,
            socket_connect_timeout=settings.timeout,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
        )
    except ValueError as error:
        raise ConfigError(f"tier redis: {error}; write for example redis://localhost:6379/0") from error
    at = client.connection_pool.connection_kwargs
    return client, str(at.get("path") or f"{at.get('host', 'localhost')}:{at.get('port', 6379)}")
