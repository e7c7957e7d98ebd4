"""Why no more of a prompt was reused: every reason that the cache itself can give, and what it may not tell."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import pytest

from kvtrove.kv.evicted import EvictedKeys
from kvtrove.kv.formats.dense import ECHO
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.reasons import Explanation, Reason
from kvtrove.kv.retention import Full, Retention, SlidingWindow
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.request import SamplingParams
from tests.echo import EchoEngine, echo_spec

BLOCK = 4


@dataclass
class Cache:
    """A manager on a clock that the test moves. `run` is one request from admission to its end."""

    rules: tuple[Retention, ...] = (Full(),)
    num_blocks: int = 8
    enabled: bool = True
    now: float = 0.0
    manager: KVCacheManager = field(init=False)

    def __post_init__(self) -> None:
        spec = KVCacheSpec(tuple(LayerKV(i, 1, 1, 1, ECHO, rule) for i, rule in enumerate(self.rules)), BLOCK)
        self.manager = KVCacheManager(
            spec, self.num_blocks, enable_prefix_caching=self.enabled, check=2, clock=lambda: self.now
        )

    def run(self, *tokens: int, salt: bytes = b"") -> None:
        kv, ids = self.manager.open(salt), array("i", tokens)
        match = self.manager.match(kv, ids, len(ids) - 1)
        assert self.manager.allocate(kv, len(ids) - match.num_tokens, match)
        self.manager.commit(kv, ids, len(ids) - match.num_tokens)
        self.manager.free(kv)

    def peek(self, *tokens: int, salt: bytes = b"") -> Explanation:
        return self.manager.peek(array("i", tokens), salt)


def reason(explanation: Explanation) -> tuple[Reason, int]:
    return explanation.reason, explanation.reused_tokens


def test_an_empty_cache_is_cold() -> None:
    assert reason(Cache().peek(*range(10))) == (Reason.COLD, 0)


def test_a_prompt_shorter_than_a_block_can_never_be_reused() -> None:
    cache = Cache()
    cache.run(1, 2, 3)
    assert reason(cache.peek(1, 2, 3)) == (Reason.BELOW_BLOCK_GRANULARITY, 0)


def test_all_full_blocks_reused_is_full() -> None:
    cache = Cache()
    cache.run(*range(10))
    found = cache.peek(*range(10))
    assert reason(found) == (Reason.FULL, 8)
    assert found.computed_tokens == 2, "the two tokens behind the last full block"


def test_a_prompt_of_whole_blocks_recomputes_the_last_one() -> None:
    cache = Cache()
    cache.run(*range(8))
    assert reason(cache.peek(*range(8))) == (Reason.LAST_TOKEN_RECOMPUTED, 4)


def test_another_token_is_diverged() -> None:
    cache = Cache()
    cache.run(*range(12))
    assert reason(cache.peek(*range(6), 99, *range(7, 12))) == (Reason.DIVERGED, 4)


def test_an_evicted_block_is_told_with_its_age() -> None:
    cache = Cache(num_blocks=4)
    cache.run(*range(12))
    cache.now = 5.0
    cache.run(*range(50, 58))  # one free block and one taken from the end of the first prompt
    cache.now = 7.5
    found = cache.peek(*range(13))
    assert reason(found) == (Reason.EVICTED, 8)
    assert found.evicted_age == 2.5
    cache.run(*range(60, 76))
    assert reason(cache.peek(*range(13))) == (Reason.EVICTED, 0)


def test_a_cleared_cache_is_evicted_not_cold() -> None:
    cache = Cache()
    cache.run(*range(10))
    cache.manager.reset_prefix_cache()
    assert reason(cache.peek(*range(10))) == (Reason.EVICTED, 0)


def test_a_window_that_is_gone_is_told_apart_from_a_missing_block() -> None:
    cache = Cache((Full(), SlidingWindow(BLOCK)), num_blocks=8)
    cache.run(*range(16))
    taken = cache.manager.pool.cached
    window = [block for block in taken if block.group == 1]
    keep = [block for block in taken if block.group == 0]
    for block in keep:  # hold the full group's blocks, so that only the window's can be evicted
        cache.manager.pool.acquire(block)
    assert window
    cache.manager.pool.drop_cached()
    cache.manager.pool.release(keep)
    assert reason(cache.peek(*range(17))) == (Reason.WINDOW_LOST, 0)


def test_disabled() -> None:
    cache = Cache(enabled=False)
    cache.run(*range(10))
    assert reason(cache.peek(*range(10))) == (Reason.DISABLED, 0)


def test_another_salt_looks_exactly_like_a_cold_cache() -> None:
    cache = Cache(num_blocks=4)
    cache.run(*range(10), salt=b"alice")
    assert cache.peek(*range(10), salt=b"bob") == Cache().peek(*range(10)), "nothing tells bob what alice sent"
    cache.run(*range(50, 66), salt=b"carol")
    assert cache.peek(*range(10), salt=b"bob").reason is Reason.COLD, "not even that it was evicted"
    assert cache.peek(*range(10), salt=b"alice").reason is Reason.EVICTED


def test_looking_changes_nothing() -> None:
    cache = Cache()
    cache.run(*range(10))
    order, stats = list(cache.manager.pool.cached), cache.manager.stats()
    for _ in range(2):
        cache.peek(*range(10))
    assert (list(cache.manager.pool.cached), cache.manager.stats()) == (order, stats)
    assert not cache.manager.sequences


def test_the_record_of_evictions_is_bounded_and_keeps_the_latest() -> None:
    now = 0.0
    record = EvictedKeys(capacity=2, clock=lambda: now)
    for key in (b"a", b"b", b"a", b"c"):
        now += 1.0
        record.add(key)
    assert len(record) == 2
    assert [record.age(key) for key in (b"a", b"b", b"c")] == [1.0, None, 0.0], "b is the oldest"


@pytest.mark.parametrize(
    ("params", "expected"),
    [(None, (Reason.FULL, 8)), (SamplingParams(max_tokens=4, prompt_logprobs=0), (Reason.PROMPT_LOGPROBS, 0))],
)
def test_the_scheduler_explains_every_request(params: SamplingParams | None, expected: tuple[Reason, int]) -> None:
    engine = EchoEngine(echo_spec(BLOCK), 32)
    first = engine.add("first", range(10, 20))
    engine.run()
    second = engine.add("second", range(10, 20), params)
    engine.run()
    explained = [request.metrics.explanation for request in (first, second)]
    assert [e and reason(e) for e in explained] == [(Reason.COLD, 0), expected]
    assert second.metrics.reused_from == ({"memory": 8} if expected[1] else {})


def test_the_scheduler_counts_tokens_and_their_times() -> None:
    engine = EchoEngine(echo_spec(BLOCK), 32)
    request = engine.add("one", range(10, 20), SamplingParams(max_tokens=3))
    engine.run()
    assert list(request.metrics.token_times) == [1.0, 2.0, 3.0], "one per step of the virtual clock"
    stats = engine.scheduler.stats()
    assert (stats.num_prompt_tokens, stats.num_generation_tokens) == (10, 3)


def test_forked_outputs_count_each_token() -> None:
    engine = EchoEngine(echo_spec(BLOCK), 32)
    engine.add("one", range(10, 20), SamplingParams(n=2, max_tokens=3))
    engine.run()
    stats = engine.scheduler.stats()
    assert (stats.num_prompt_tokens, stats.num_generation_tokens) == (10, 6)
