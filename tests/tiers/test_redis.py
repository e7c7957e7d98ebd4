"""The Redis tier against a real redis-server, which is paused, killed and lied to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from kvtrove.config import ConfigError
from kvtrove.kv.tiers.redis import PREFIX, RedisSettings, RedisStore
from kvtrove.kv.tiers.store import Found, Outcome
from tests.tiers.redis_server import RedisServer, server_url
from tests.tiers.rows import ROW, get, key, known, put, row, until

SECRET = b"0123456789abcdef"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return server_url(tmp_path)


def opened(url: str, fingerprint: bytes = b"spec", **settings: object) -> RedisStore:
    return RedisStore(RedisSettings(url, **({"key": SECRET} | settings)), "int8/1", fingerprint)  # type: ignore[arg-type]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as started:
        yield started


def test_another_engine_finds_what_one_has_put(url: str) -> None:
    one, two = opened(url), opened(url)
    assert put(one, range(20)).ok
    assert two.lookup([key(0)]) == [Found.UNKNOWN_YET]
    assert known(two, [0, 19, 20]) == [Found.HERE, Found.HERE, Found.MISSING]
    ticket, rows = get(two, range(20))
    assert ticket.ok
    assert rows == [row(i) for i in range(20)]
    one.close()
    two.close()


def test_what_another_secret_signed_is_a_miss_and_one_notice(url: str, caplog: pytest.LogCaptureFixture) -> None:
    one, two = opened(url), opened(url, key=b"another secret of ours")
    put(one, [1, 2])
    for i in (1, 2):
        assert get(two, [i])[0].outcomes == [Outcome.CHECKSUM]
    assert two.figures()[0].errors["signature"] == 2
    assert sum("signature" in message for message in caplog.messages) == 1
    assert get(one, [1])[0].ok
    one.close()
    two.close()


@pytest.mark.parametrize("at", [0, 60, 128, 128 + ROW, -1])
def test_a_changed_value_is_never_a_hit(url: str, at: int) -> None:
    store = opened(url)
    put(store, [1])
    client = redis.Redis.from_url(url)
    name = PREFIX + key(1).hex()
    value = bytearray(client.get(name) or b"")
    value[at] ^= 1
    client.set(name, bytes(value))
    assert get(store, [1])[0].outcomes == [Outcome.CHECKSUM]
    client.set(name, b"short")
    assert get(store, [1])[0].outcomes == [Outcome.CHECKSUM]
    store.close()


def test_rows_of_another_kind_are_no_hits(url: str) -> None:
    one, two = opened(url), opened(url, fingerprint=b"another")
    put(one, [1])
    assert get(two, [1])[0].outcomes[0] is not Outcome.OK
    one.close()
    two.close()


def test_rows_live_as_long_as_they_are_read(url: str) -> None:
    store = opened(url, ttl=50)
    put(store, [1])
    client = redis.Redis.from_url(url)
    name = PREFIX + key(1).hex()
    client.expire(name, 5)
    get(store, [1])
    assert 5 < client.ttl(name) <= 50
    store.close()


def test_what_one_engine_keeps_is_bounded(url: str) -> None:
    store = opened(url, size=10 * ROW)
    for i in range(30):
        put(store, [i])
    until(lambda: redis.Redis.from_url(url).dbsize() <= 10)
    assert store.figures()[0].nbytes <= 10 * ROW
    assert get(store, [29])[0].ok
    assert known(store, [0]) == [Found.MISSING]
    store.close()


def test_a_paused_server_is_a_miss_and_never_waited_for(server: RedisServer) -> None:
    store = opened(server.url, timeout=0.1)
    put(store, range(4))
    server.pause()
    started = time.monotonic()
    ticket, _ = get(store, range(4))
    assert set(ticket.outcomes) <= {Outcome.TIMEOUT, Outcome.ERROR}
    for i in range(10, 20):
        store.put([key(i)], [row(i)])
        store.lookup([key(i + 100)])
    calls = time.monotonic()
    store.lookup([key(500)])
    store.get([key(1)], [memoryview(bytearray(ROW))])
    store.put([key(600)], [row(600)])
    assert time.monotonic() - calls < 0.1 < 20 > calls - started
    until(lambda: not store._health.is_usable)
    assert known(store, [1]) == [Found.MISSING]
    assert put(store, [30]).outcomes == [Outcome.DECLINED]
    server.go_on()
    store._health._rest_until = 0  # the rest is over
    until(lambda: known(store, [1]) == [Found.HERE])
    assert get(store, range(4))[0].ok
    store.close()


def test_a_killed_server_is_said_once_and_used_when_it_is_back(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = opened(server.url)
    put(store, [1])
    server.kill()
    for i in range(1, 5):
        assert get(store, [i])[0].outcomes[0] in (Outcome.ERROR, Outcome.MISS)
    assert known(store, [1]) == [Found.MISSING]
    assert sum("no connection" in message for message in caplog.messages) == 1
    assert store.figures()[0].notices
    server.start()
    store._health._rest_until = 0
    assert put(store, [7]).ok
    assert get(store, [7])[1] == [row(7)]
    assert not store.figures()[0].notices
    store.close()


def test_a_full_server_declines(server: RedisServer) -> None:
    redis.Redis.from_url(server.url).config_set("maxmemory", "1")
    store = opened(server.url)
    assert put(store, [1]).outcomes == [Outcome.ERROR]
    assert store.figures()[0].errors["server full"] >= 1
    store.close()


def test_settings_that_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVTROVE_TIER_KEY", raising=False)
    with pytest.raises(ConfigError, match="KVTROVE_TIER_KEY"):
        RedisStore(RedisSettings("redis://localhost/0"))
    monkeypatch.setenv("KVTROVE_TIER_KEY", "short")
    with pytest.raises(ConfigError, match="at least 16 characters"):
        RedisStore(RedisSettings("redis://localhost/0"))
    with pytest.raises(ConfigError, match="write for example redis://"):
        RedisStore(RedisSettings("redis://localhost:port/0", key=SECRET))
    assert "0123456789abcdef" not in repr(RedisSettings("redis://localhost/0", key=SECRET))
