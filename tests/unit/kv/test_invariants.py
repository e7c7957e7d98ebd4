"""Each invariant notices its violation and says so; the check levels look when they should."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import pytest

from kvtrove.kv.block import Block
from kvtrove.kv.formats.dense import ECHO
from kvtrove.kv.invariants import InvariantError
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.retention import Full, SlidingWindow
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.kv.table import SequenceKV

SPEC = KVCacheSpec((LayerKV(0, 1, 1, 1, ECHO), LayerKV(1, 1, 1, 1, ECHO, SlidingWindow(6))), block_size=4)
TOKENS = array("i", range(100))


class Cache:
    """Two tenants' sequences of 10 tokens, cached and free blocks besides; `crcs` are the checksums of the rows."""

    def __init__(self, check: int = 0) -> None:
        self.crcs = [0] * 20
        self.manager = KVCacheManager(SPEC, 20, check=2, crc=self.crcs.__getitem__)
        self.manager._check_level = check
        self.kv, self.other = (self.sequence(salt) for salt in (b"red", b"blue"))
        self.pin = self.manager.pin(self.kv)
        self.manager.free(self.sequence(b"green"))

    def sequence(self, salt: bytes) -> SequenceKV:
        kv = self.manager.open(salt)
        assert self.manager.allocate(kv, 10)
        self.manager.commit(kv, TOKENS, 10)
        return kv

    def block(self, i: int, group: int = 0) -> Block:
        block = self.kv.tables[group].blocks[i]
        assert block is not None
        return block


def open_twice(cache: Cache) -> None:
    cache.block(2).ref_count += 1
    cache.other.tables[0].blocks[2] = cache.block(2)


def swap_prefixes(cache: Cache) -> None:
    mine, theirs = cache.kv.tables[0].blocks, cache.other.tables[0].blocks
    mine[0], theirs[0] = theirs[0], mine[0]


def write_to_a_sealed_row(cache: Cache) -> None:
    cache.crcs[cache.block(0).id] += 1


def lose_a_live_block(cache: Cache) -> None:
    (index, block), *_ = cache.kv.tables[1].release_dead(SlidingWindow(1), 8, 4)
    assert index == 1
    block.ref_count -= 1


def keep_a_dead_block(cache: Cache) -> None:
    table = cache.kv.tables[1]
    dead = next(
        block for block in cache.manager.pool.cached if block.group == 1 and block.key == cache.kv.chain.keys[0]
    )
    cache.manager.pool.acquire(dead)
    table.blocks[0], table._ids[0], table.num_held = dead, dead.id, table.num_held + 1


BREAKS: list[tuple[str, Callable[[Cache], object]]] = [
    ("I1: .* blocks are not 20", lambda c: c.manager.pool._free.append(Block(19))),
    ("I1: the free list holds", lambda c: c.manager.pool._free.pop()),
    ("I2: .* is held by 1 tables and 1 pins", lambda c: setattr(c.block(0), "ref_count", 3)),
    ("I3: .* is open in 2 tables", open_twice),
    ("I4: .* is sealed and has no key", lambda c: setattr(c.block(0), "key", b"")),
    ("I4: .* is not sealed and has a key", lambda c: setattr(c.block(2), "key", b"key")),
    ("I4: .* is published, the index says otherwise", lambda c: c.manager.index.forget(c.block(0))),
    ("I4: the index holds", lambda c: c.manager.index._blocks[1].update({b"lost": Block(3)})),
    ("I4: .* is entry 2 of a sequence of 12 computed", lambda c: setattr(c.kv, "num_computed", 12)),
    ("I5: .* is in the eviction order", lambda c: c.manager.pool.cached.add(c.block(0))),
    ("I5: the eviction order has", lambda c: c.manager.pool.cached.victim()),
    ("I6: group 1 at 10 tokens lacks blocks {1}", lose_a_live_block),
    ("I6: group 1 at 10 tokens lacks blocks set.. and keeps {0}", keep_a_dead_block),
    ("I6: group 0 hands out the ids", lambda c: c.kv.tables[0]._ids.__setitem__(0, 7)),
    ("I6: group 0 counts 4 blocks and holds 3", lambda c: setattr(c.kv.tables[0], "num_held", 4)),
    ("I7: the bytes of .* changed after it was sealed", write_to_a_sealed_row),
    ("I8: .* is entry 0 of a sequence with another prefix", swap_prefixes),
    ("I8: a sequence of salt b'red' has the key chain of another", lambda c: setattr(c.kv.chain, "root", b"other")),
    ("I12: a sequence that gave up 0 tokens has .* gave up 4", lambda c: setattr(c.kv.chain, "dropped", 4)),
    ("I12: .* is entry 0 of a sequence that has given up tokens", lambda c: setattr(c.kv, "dropped", 4)),
]


@pytest.mark.parametrize(("sentence", "damage"), BREAKS, ids=[sentence[:30] for sentence, _ in BREAKS])
def test_every_violation_is_told(sentence: str, damage: Callable[[Cache], object]) -> None:
    cache = Cache(check=2)
    assert cache.manager.check() == []
    damage(cache)
    found = "\n".join(cache.manager.check())
    with pytest.raises(InvariantError, match=sentence):
        raise InvariantError(found)


def test_level_2_looks_after_every_change() -> None:
    cache = Cache(check=2)
    write_to_a_sealed_row(cache)
    manager, kv = cache.manager, cache.kv
    changes: list[Callable[[], object]] = [
        manager.open,
        lambda: manager.allocate(kv, 20),
        lambda: manager.commit(kv, TOKENS, 1),
        lambda: manager.commit(kv, TOKENS, 5),
        lambda: manager.fork(kv),
        lambda: manager.pin(kv),
        lambda: manager.truncate(kv, 13),
        lambda: manager.free(cache.other),
        lambda: manager.unpin(cache.pin),
        manager.reset_prefix_cache,
    ]
    for change in changes:
        with pytest.raises(InvariantError, match="I7"):
            change()


def test_level_1_looks_when_the_last_sequence_leaves() -> None:
    cache = Cache(check=1)
    write_to_a_sealed_row(cache)
    cache.manager.free(cache.other)
    with pytest.raises(InvariantError, match="I7"):
        cache.manager.free(cache.kv)


def test_level_0_does_not_look() -> None:
    cache = Cache(check=0)
    write_to_a_sealed_row(cache)
    cache.manager.free(cache.kv)
    cache.manager.free(cache.other)
    assert cache.manager.check() != []


def test_rows_are_only_summed_at_level_2() -> None:
    def crc(block_id: int) -> int:
        raise AssertionError("the checksum of a row costs a pass over its bytes")

    manager = KVCacheManager(KVCacheSpec((LayerKV(0, 1, 1, 1, ECHO, Full()),), 4), 8, check=1, crc=crc)
    kv = manager.open()
    manager.allocate(kv, 10)
    manager.commit(kv, TOKENS, 10)
    manager.free(kv)
