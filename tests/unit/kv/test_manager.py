"""KVCacheManager's contract towards its callers. Longer stories are in tests/scenario/kv, laws in tests/property."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from kvtrove.kv.formats.dense import ECHO, dense
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.retention import Full, Retention, SlidingWindow
from kvtrove.kv.rows import Copy
from kvtrove.kv.spec import KVCacheSpec, KVFormat, LayerKV
from kvtrove.kv.table import SequenceKV


def make_spec(*rules: Retention, block_size: int = 4, kv_format: KVFormat = ECHO) -> KVCacheSpec:
    return KVCacheSpec(
        tuple(LayerKV(i, 1, 1, 1, kv_format, rule) for i, rule in enumerate(rules or (Full(),))), block_size
    )


def make(*rules: Retention, num_blocks: int = 20) -> KVCacheManager:
    return KVCacheManager(make_spec(*rules), num_blocks, check=2, clock=lambda: 0.0)


def ids(*tokens: range | int) -> array[int]:
    return array("i", [i for one in tokens for i in (one if isinstance(one, range) else (one,))])


def compute(manager: KVCacheManager, tokens: array[int], salt: bytes = b"") -> SequenceKV:
    """A sequence that computed all of `tokens` without reusing anything."""
    kv = manager.open(salt)
    assert manager.allocate(kv, len(tokens))
    manager.commit(kv, tokens, len(tokens))
    return kv


# ---- match ----


def test_match_changes_nothing() -> None:
    manager = make(Full(), SlidingWindow(8))
    for start in (0, 50):
        manager.free(compute(manager, ids(range(start, start + 16))))
    order, stats = list(manager.pool.cached), manager.stats()
    kv = manager.open()
    first, second = (manager.match(kv, ids(range(17)), 16) for _ in range(2))
    assert first == second
    assert first.num_tokens == 16
    assert (list(manager.pool.cached), manager.stats()) == (order, stats)
    assert (kv.num_computed, kv.num_blocks, len(kv.chain.keys)) == (0, 0, 4)


@pytest.mark.parametrize(("limit", "expected"), [(0, 0), (3, 0), (4, 4), (11, 8), (12, 12), (100, 12)])
def test_match_stays_within_the_limit(limit: int, expected: int) -> None:
    manager = make()
    manager.free(compute(manager, ids(range(12))))
    assert manager.match(manager.open(), ids(range(14)), limit).num_tokens == expected


def test_match_counts_what_taking_it_over_costs() -> None:
    manager = make(Full(), SlidingWindow(8))
    a = compute(manager, ids(range(16)))
    b = compute(manager, ids(range(16), range(90, 94)))
    manager.free(b)
    match = manager.match(manager.open(), ids(range(16), range(90, 94), 1), 20)
    assert match.num_tokens == 20
    assert match.num_shared_blocks == 5, "4 of the full group, 1 of the window, both held by a"
    assert match.num_idle_blocks == 2, "the last block of each group"
    manager.free(a)
    assert match.num_shared_blocks == 0


def test_a_match_and_its_new_blocks_must_fit_together() -> None:
    manager = make(num_blocks=4)
    manager.free(compute(manager, ids(range(12))))
    kv, tokens = manager.open(), ids(range(20))
    match = manager.match(kv, tokens, 19)
    assert (match.num_tokens, manager.num_free_blocks) == (12, 4)
    stats = manager.stats()
    assert not manager.allocate(kv, 8, match), "4 are free, but 3 of them are the match"
    assert (manager.stats(), kv.num_blocks, kv.num_computed) == (stats, 0, 0)
    assert manager.allocate(kv, 4, match)
    assert kv.num_blocks == 4


def test_a_match_whose_blocks_were_evicted_is_refused() -> None:
    manager = make(num_blocks=4)
    manager.free(compute(manager, ids(range(12))))
    kv, tokens = manager.open(), ids(range(14))
    match = manager.match(kv, tokens, 13)
    assert match.num_tokens == 12
    stranger = compute(manager, ids(range(100, 108)))  # takes the free block and the last of the three
    stats = manager.stats()
    assert not manager.allocate(kv, 0, match)
    assert (manager.stats(), kv.num_blocks) == (stats, 0)
    manager.free(stranger)
    again = manager.match(kv, tokens, 13)
    assert manager.allocate(kv, 2, again)
    assert kv.num_computed == again.num_tokens == 8


def test_a_match_is_refused_when_the_same_row_holds_the_same_key_for_another_group() -> None:
    """Groups share the pool: a row can come back under the same key with another group's bytes."""
    manager = make(Full(), Full(), num_blocks=2)
    assert manager.num_groups == 1, "equal retentions share a group"
    manager = make(Full(), SlidingWindow(100), num_blocks=2)
    manager.free(compute(manager, ids(range(4))))
    kv = manager.open()
    match = manager.match(kv, ids(range(5)), 4)
    before = [row[0] for row in match.blocks]
    manager.reset_prefix_cache()
    manager.free(compute(manager, ids(range(4))))
    after = [row[0] for row in manager.match(manager.open(), ids(range(5)), 4).blocks]
    assert before == after[::-1], "the rows changed places"
    assert not manager.allocate(kv, 0, match)


def test_corrupted_tokens_are_a_miss() -> None:
    manager = KVCacheManager(make_spec(), 8)
    manager.free(compute(manager, ids(range(8))))
    manager.pool.blocks[1].tokens = bytes(16)
    assert manager.match(manager.open(), ids(range(9)), 8).num_tokens == 4
    assert manager.stats().mismatches == 1


def test_hits_are_counted_when_they_are_taken_not_when_they_are_found() -> None:
    manager = make()
    manager.free(compute(manager, ids(range(8))))
    kv, tokens = manager.open(), ids(range(11))
    for _ in range(3):
        match = manager.match(kv, tokens, 10)
    assert manager.stats().queries == 0
    manager.allocate(kv, 3, match)
    assert (manager.stats().queries, manager.stats().hits) == (11, 8)
    assert manager.stats().hit_rate == 8 / 11


@pytest.mark.parametrize(
    "other",
    [
        KVCacheManager(make_spec(), 8, root=b"another model"),
        KVCacheManager(make_spec(kv_format=dense("float32")), 8),
        KVCacheManager(make_spec(SlidingWindow(8)), 8),
    ],
)
def test_keys_differ_between_models_and_formats(other: KVCacheManager) -> None:
    keys = [compute(manager, ids(range(4))).chain.keys[0] for manager in (KVCacheManager(make_spec(), 8), other)]
    assert keys[0] != keys[1]


def test_without_prefix_caching_nothing_is_hashed() -> None:
    manager = KVCacheManager(make_spec(), 8, enable_prefix_caching=False, check=2)
    kv = compute(manager, ids(range(8)))
    assert manager.match(manager.open(), ids(range(9)), 8).num_tokens == 0
    assert kv.chain.keys == []
    manager.free(kv)
    assert (manager.stats().free, manager.stats().cached) == (8, 0)


# ---- steps ----


def test_block_ids_are_views_that_are_kept_until_the_table_grows() -> None:
    manager = make(Full(), SlidingWindow(6), num_blocks=50)
    tokens = ids(range(100))
    kv = compute(manager, tokens[:9])
    before = kv.block_ids()
    manager.allocate(kv, 3)
    manager.commit(kv, tokens, 2)
    assert kv.block_ids() is before, "a step inside a block costs nothing"
    assert [group.dtype for group in before] == [np.int32, np.int32]
    manager.commit(kv, tokens, 1)
    assert [(group >= 0).tolist() for group in before] == [[True] * 3, [False, True, True]]
    manager.allocate(kv, 60)
    grown = kv.block_ids()
    assert [len(group) for group in grown] == [18, 18]
    assert grown[0][:3].tolist() == before[0].tolist(), "what was handed out stays as it was"


def test_blocks_leave_a_window_oldest_first() -> None:
    """So that what is cached for longest is the run that the live window continues."""
    manager = make(SlidingWindow(4), SlidingWindow(5))
    kv = compute(manager, ids(range(20)))
    positions = [(kv.chain.keys.index(block.key), block.group) for block in manager.pool.cached]
    assert positions == [(i, group) for i in range(4) for group in (0, 1)]


def test_free_puts_the_end_of_all_groups_first() -> None:
    manager = make(Full(), SlidingWindow(100))
    kv = compute(manager, ids(range(10)))
    keys = kv.chain.keys
    manager.free(kv)
    assert [(keys.index(b.key), b.group) for b in manager.pool.cached] == [(1, 0), (1, 1), (0, 0), (0, 1)]


def test_commit_of_nothing_and_allocate_of_nothing() -> None:
    manager = make()
    kv = manager.open()
    assert manager.allocate(kv, 0)
    manager.commit(kv, ids(), 0)
    assert (kv.num_blocks, kv.num_computed) == (0, 0)


def test_copies_are_handed_out_once_and_in_order() -> None:
    manager = make(Full(), SlidingWindow(100))
    kv = compute(manager, ids(range(6)))
    child = manager.fork(kv)
    assert child is not None
    grandchild = manager.fork(child)
    assert grandchild is not None
    tails = [[int(group[1]) for group in one.block_ids()] for one in (kv, child, grandchild)]
    pairs = [*zip(tails[0], tails[1], strict=True), *zip(tails[1], tails[2], strict=True)]
    assert manager.take_ops() == [Copy(*pair) for pair in pairs]
    assert manager.take_ops() == []


def test_pins_are_references() -> None:
    manager = make()
    kv = compute(manager, ids(range(10)))
    first, second = manager.pin(kv), manager.pin(kv)
    manager.free(kv)
    assert manager.stats().used == 2, "the open block is not pinned"
    manager.unpin(first)
    manager.unpin(first)
    assert manager.stats().used == 2
    manager.unpin(second)
    assert (manager.stats().used, manager.stats().cached) == (0, 2)


def test_usage_and_free_blocks() -> None:
    manager = make(num_blocks=8)
    kv = compute(manager, ids(range(8)))
    assert (manager.num_free_blocks, manager.stats().usage) == (6, 0.25)
    manager.free(kv)
    assert (manager.num_free_blocks, manager.stats().usage) == (8, 0.0)


def test_the_clock_dates_evictions() -> None:
    now = [100.0]
    manager = KVCacheManager(make_spec(), 2, clock=lambda: now[0])
    manager.free(compute(manager, ids(range(8))))
    now[0] = 130.0
    compute(manager, ids(range(50, 54)))
    assert manager.stats().eviction_age == 30.0


def test_other_tokens_after_a_truncate_get_other_keys() -> None:
    manager = make()
    kv = compute(manager, ids(range(12)))
    other = ids(range(6), range(50, 60))
    assert manager.truncate(kv, 6)
    manager.take_ops()
    manager.allocate(kv, 10)
    manager.commit(kv, other, 10)
    assert kv.chain.keys == compute(manager, other).chain.keys


def test_children_may_go_on_with_other_tokens_than_the_prompt_of_their_parent() -> None:
    manager = make()
    kv, prompt, other = manager.open(), ids(range(12)), ids(range(4), range(50, 58))
    manager.match(kv, prompt, 11)  # hashes ahead
    manager.allocate(kv, 4)
    manager.commit(kv, prompt, 4)
    child = manager.fork(kv)
    assert child is not None
    manager.allocate(child, 8)
    manager.commit(child, other, 8)
    assert child.chain.keys == compute(manager, other).chain.keys


# ---- mistakes of the caller ----


def test_a_freed_sequence_can_only_be_freed_again() -> None:
    manager = make()
    kv = compute(manager, ids(range(6)))
    manager.free(kv)
    manager.free(kv)
    assert kv.num_computed == 0
    assert [len(group) for group in kv.block_ids()] == [0]
    calls = (
        lambda: manager.allocate(kv, 0),
        lambda: manager.commit(kv, ids(range(9)), 0),
        lambda: manager.fork(kv),
        lambda: manager.truncate(kv, 0),
        lambda: manager.pin(kv),
        lambda: manager.match(kv, ids(range(9)), 8),
    )
    for call in calls:
        with pytest.raises(ValueError, match="the sequence was freed; open a new one"):
            call()


def test_match_is_for_empty_sequences() -> None:
    manager = make()
    kv = compute(manager, ids(range(6)))
    other = manager.open()
    match = manager.match(other, ids(range(6)), 5)
    for call in (lambda: manager.match(kv, ids(range(6)), 5), lambda: manager.allocate(kv, 1, match)):
        with pytest.raises(ValueError, match="only be matched by an empty sequence, this one has 6 tokens"):
            call()


@pytest.mark.parametrize("num", [-1, 3])
def test_commit_stays_within_what_was_allocated(num: int) -> None:
    manager = make()
    kv = compute(manager, ids(range(6)))
    with pytest.raises(ValueError, match=f"cannot commit {num} tokens after 6: blocks are allocated for 8"):
        manager.commit(kv, ids(range(20)), num)
    assert kv.num_computed == 6


def test_commit_needs_the_tokens_that_it_hashes() -> None:
    manager = make()
    kv = compute(manager, ids(range(6)))
    with pytest.raises(ValueError, match="cannot commit up to token 8: only 7 token ids were given"):
        manager.commit(kv, ids(range(7)), 2)
    manager.commit(kv, ids(range(8)), 2)


def test_allocate_takes_no_negative_number() -> None:
    manager = make()
    kv = manager.open()
    with pytest.raises(ValueError, match="num_new: -1 must not be negative"):
        manager.allocate(kv, -1, manager.match(kv, ids(), 0))


@pytest.mark.parametrize("num_tokens", [-1, 7])
def test_truncate_only_shortens(num_tokens: int) -> None:
    manager = make()
    kv = compute(manager, ids(range(6)))
    with pytest.raises(ValueError, match=f"num_tokens: {num_tokens} must lie between 0 and the 6 computed"):
        manager.truncate(kv, num_tokens)


def test_truncate_says_what_the_window_has_given_up() -> None:
    manager = make(SlidingWindow(8))
    kv = compute(manager, ids(range(24)))
    with pytest.raises(ValueError, match=r"cannot resume at 19 of 24 tokens: .*window=8.* given up tokens 12 to 15"):
        manager.truncate(kv, 19)


def test_a_cache_that_cannot_work_is_refused() -> None:
    with pytest.raises(ValueError, match="window 0 must be at least 1"):
        KVCacheManager(make_spec(SlidingWindow(0)), 8)
    with pytest.raises(ValueError, match="num_blocks: 0 must be at least 1"):
        KVCacheManager(make_spec(), 0)
