"""What the cache derives from a retention, against definitions that are too slow to use."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvtrove.kv.block import Block
from kvtrove.kv.chain import KeyChain
from kvtrove.kv.formats.dense import ECHO
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.prefix_cache import PrefixCache, longest_prefix
from kvtrove.kv.retention import (
    Beginning,
    ChunkedLocal,
    Full,
    Retention,
    SinksAndWindow,
    SlidingWindow,
    live_blocks,
    num_stored,
    peak_blocks,
)
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.kv.table import dead_runs, next_event
from kvtrove.plan.capacity import max_tokens

SIZES = st.integers(1, 17)
RETENTIONS = st.one_of(
    st.just(Full()),
    st.builds(SlidingWindow, st.integers(1, 40)),
    st.builds(SinksAndWindow, st.integers(0, 20), st.integers(1, 40)),
    st.builds(ChunkedLocal, st.integers(1, 40)),
    st.builds(Beginning, st.sampled_from([Full(), SlidingWindow(20)]), st.integers(1, 10).map(lambda n: 8 * n)),
)


def spec_of(retentions: list[Retention], block_size: int) -> KVCacheSpec:
    return KVCacheSpec(tuple(LayerKV(i, 1, 1, 1, ECHO, rule) for i, rule in enumerate(retentions)), block_size)


@given(RETENTIONS, st.integers(0, 200))
def test_live_ranges_are_ascending_disjoint_and_below_n(retention: Retention, n: int) -> None:
    spans = retention.live(n)
    edges = [edge for span in spans for edge in (span.start, span.stop)]
    assert edges == sorted(edges)
    assert all(0 <= span.start < span.stop <= n for span in spans)


@given(RETENTIONS, st.integers(0, 200))
def test_a_dead_token_never_lives_again(retention: Retention, n: int) -> None:
    """What the manager releases and the search for a prefix rely on."""
    now, later = (({p for span in retention.live(m) for p in span}) for m in (n, n + 1))
    assert later <= now | {n}


@given(RETENTIONS, st.integers(0, 200), SIZES)
def test_live_blocks_are_those_of_the_live_tokens(retention: Retention, n: int, block_size: int) -> None:
    expected = sorted({p // block_size for span in retention.live(n) for p in span})
    assert list(live_blocks(retention, n, block_size)) == expected


@given(RETENTIONS, st.integers(0, 200), SIZES)
def test_dead_runs_are_the_full_blocks_that_are_not_live(retention: Retention, n: int, block_size: int) -> None:
    dead = [i for run in dead_runs(retention, n, block_size) for i in run]
    held = min(n // block_size, -(-num_stored(retention, n) // block_size))
    assert dead == sorted(set(range(held)) - set(live_blocks(retention, n, block_size)))


@given(st.lists(RETENTIONS, max_size=3), st.integers(0, 150), SIZES)
def test_nothing_happens_to_a_block_before_the_next_event(rules: list[Retention], n: int, block_size: int) -> None:
    def state(m: int) -> object:
        return m // block_size, [list(dead_runs(rule, m, block_size)) for rule in rules]

    event = next_event(rules, n, block_size)
    assert all(state(m) == state(n) for m in range(n, event)), "commit would sleep through a seal or a release"
    assert state(event) != state(n), "commit would wake up for nothing"


@given(st.data(), st.lists(RETENTIONS, min_size=1, max_size=3), SIZES)
@settings(max_examples=max(200, settings().max_examples))
def test_a_sequence_never_holds_more_than_blocks_for(data: st.DataObject, rules: list[Retention], size: int) -> None:
    """Any mix of chunks and single tokens; the planner, admission and max_model_len build on this bound."""
    spec = spec_of(rules, size)
    length, chunk = data.draw(st.integers(1, 120)), data.draw(st.integers(1, 40))
    manager = KVCacheManager(spec, 10_000, enable_prefix_caching=False)
    bound = manager.blocks_for(length, chunk)
    kv, tokens = manager.open(), array("i", range(length))
    while left := length - kv.num_computed:
        num = data.draw(st.sampled_from([min(chunk, left), 1, data.draw(st.integers(1, min(chunk, left)))]))
        assert manager.allocate(kv, num)
        assert kv.num_blocks <= bound
        manager.commit(kv, tokens, num)
    if all(rule == Full() for rule in rules):
        assert kv.num_blocks == bound, "for full attention the bound is exact"


@given(RETENTIONS, st.integers(1, 60), SIZES)
def test_the_bound_grows_with_the_length(retention: Retention, chunk: int, block_size: int) -> None:
    """So that the longest sequence that fits can be found by bisection."""
    bounds = [peak_blocks(retention, length, chunk, block_size) for length in range(1, 150)]
    assert bounds == sorted(bounds)


@pytest.mark.parametrize("rules", [[Full()], [SlidingWindow(5)], [Full(), SlidingWindow(6)]])
@given(num_blocks=st.integers(1, 60), chunk=st.integers(1, 20))
def test_max_tokens_is_the_longest_that_fits(rules: list[Retention], num_blocks: int, chunk: int) -> None:
    spec, most = spec_of(rules, 4), 2**31 - 1
    longest = max_tokens(spec, num_blocks, most, chunk)
    assert longest == 0 or spec.blocks_for(longest, chunk) <= num_blocks
    assert longest == most or spec.blocks_for(longest + 1, chunk) > num_blocks


@given(st.data(), st.lists(RETENTIONS, min_size=1, max_size=3), st.integers(1, 6))
@settings(max_examples=max(300, settings().max_examples))
def test_longest_prefix_equals_brute_force(data: st.DataObject, rules: list[Retention], size: int) -> None:
    """Whatever blocks happen to be left in the cache, in whatever group."""
    groups = spec_of(rules, size).groups
    length = data.draw(st.integers(0, 20))
    chain = KeyChain(b"root", size)
    chain.extend(array("i", range(length * size)), length)
    cache = PrefixCache(len(groups))
    published: dict[tuple[int, int], Block] = {}
    for group in groups:
        for i in range(length):
            if data.draw(st.sampled_from([True, True, True, False])):
                block = Block(len(published))
                block.group, block.key, block.tokens = group.index, chain.keys[i], chain.tokens[i]
                cache.publish(block)
                published[group.index, i] = block

    def needed(n: int) -> list[tuple[int, int]]:
        return [(g.index, i) for g in groups for i in live_blocks(g.retention, n * size, size)]

    n, rows = longest_prefix(cache, groups, chain, length)
    assert n == max(m for m in range(length + 1) if all(one in published for one in needed(m)))
    assert [len(row) for row in rows] == [n] * len(groups)
    taken = {(g, i): block for g, row in enumerate(rows) for i, block in enumerate(row) if block is not None}
    assert taken == {one: published[one] for one in needed(n)}


@given(st.integers(1, 30), st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
@example(
    window=20, present=[(True, False)] * 60
)  # one group lowers the length step by step, the other one must not rescan
def test_longest_prefix_looks_at_each_block_once(window: int, present: list[tuple[bool, bool]]) -> None:
    groups = spec_of([SlidingWindow(window), SlidingWindow(window + 1)], 1).groups
    chain = KeyChain(b"root", 1)
    chain.extend(array("i", range(len(present))), len(present))
    lookups: list[tuple[int, bytes]] = []

    class CountingCache(PrefixCache):
        def find(self, group: int, key: bytes, tokens: bytes) -> Block | None:
            lookups.append((group, key))
            return super().find(group, key, tokens)

    cache = CountingCache(2)
    for i, in_groups in enumerate(present):
        for group in groups:
            if in_groups[group.index]:
                block = Block(0)
                block.group, block.key, block.tokens = group.index, chain.keys[i], chain.tokens[i]
                cache.publish(block)
    longest_prefix(cache, groups, chain, len(present))
    assert len(lookups) == len(set(lookups))
