"""The bytes of one sequence: where they lie now, and how they come back into a pool later.

    | sealed rows: found by their keys, shared | tail: the open block's rows |   seat
    0                                          ^ full blocks                 ^ num_computed

Sealed rows, those of the last checkpoint of states among them, become cached blocks, like all others. The tail and the
seat belong to one sequence, which takes them over when it is admitted with all full blocks before them: it then
continues in the midst of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtrove.kv.block import Block
from kvtrove.kv.chain import KeyChain
from kvtrove.kv.loads import take_in
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.marks import Mark
from kvtrove.kv.prefix_cache import Match
from kvtrove.kv.retention import live_blocks
from kvtrove.kv.rows import FillSeat, Park
from kvtrove.kv.seats import NONE
from kvtrove.kv.table import SequenceKV

Place = tuple[int, int, int]
"""Group, index of the block in the sequence, row of the arena."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Numbers of rows. sealed: in the order of the prefix. tail: of the open block, in each group that has it."""

    num_computed: int
    sealed: Sequence[Place]
    tail: Sequence[int]
    seat: int


@dataclass(frozen=True, slots=True)
class Tail:
    """Bytes behind the full blocks of `num_computed` tokens. rows: one a group. seat: empty where there are none."""

    num_computed: int
    rows: Sequence[memoryview]
    seat: memoryview


def snapshot(books: KVCacheManager, kv: SequenceKV) -> Snapshot:
    """What an open sequence holds between two steps; nothing of one that has given up tokens, which begins again."""
    if kv.dropped:
        return Snapshot(0, (), (), NONE)
    full, part = divmod(kv.num_computed, books.block_size)
    blocks = [(g, i, b) for g, t in enumerate(kv.tables) for i, b in enumerate(t.blocks[:full]) if b]
    mark = books.states.at(kv, books.block_size * books.marks.before(kv.chain, min(full, len(kv.chain.keys))))
    sealed = _in_order(blocks, mark)
    tail = [block.id for table in kv.tables for block in table.blocks[full : full + 1] if block] if part else []
    return Snapshot(kv.num_computed, sealed, tail, kv.seat)


def park(books: KVCacheManager, kv: SequenceKV) -> Tail | None:
    """Keep what a sequence that is about to lose its blocks has behind the full ones, which the cache and tiers keep.

    Its memory is filled by the operations that are executed next. None when there is nothing to come back to.
    """
    if not books.index.enabled or not kv.num_computed or kv.dropped:
        return None
    held = snapshot(books, kv)
    rows = [memoryview(bytearray(books.spec.block_bytes)) for _ in held.tail]
    seat = memoryview(bytearray(books.spec.seat_bytes if held.seat != NONE else 0))
    books.rows.add(Park(row, target) for row, target in zip(held.tail, rows, strict=True))
    if seat:
        books.rows.add([Park(held.seat, seat, seat=True)])
    return Tail(held.num_computed, rows, seat)


def snapshot_of(match: Match) -> Snapshot:
    """What a match has found."""
    sealed = _in_order([(g, i, b) for g, row in enumerate(match.blocks) for i, b in enumerate(row) if b], match.mark)
    return Snapshot(match.num_tokens, sealed, (), NONE)


def put_back(books: KVCacheManager, chain: KeyChain, rows: Sequence[tuple[int, int, memoryview]]) -> int:
    """Make rows (group, index in the chain, content) cached blocks; returns how many of them the pool has now.

    In their order, until no block is free. The operations that fill them are still to be executed.
    """
    held, known = [], 0
    mark: list[Block] = []
    for group, i, content in rows:
        if books.index.find(group, chain.keys[i], chain.tokens[i]) is not None:
            known += 1
            continue
        block = take_in(books, chain, (group, i), content)
        if block is None:
            break
        if books.transfers is not None:
            books.transfers.sealed(block)
        held.append(block)
        mark += [block] if group >= books.num_groups else []
        if len(mark) == books.marks.num_rows > 0:
            books.marks.adopt(chain, i + 1, mark)
            mark = []
    books.pool.release(reversed(held))  # the end of the prefix leaves the cache first
    return known + len(held)


def match_to_tail(books: KVCacheManager, kv: SequenceKV, tail: Tail, num_queried: int) -> Match | None:
    """A match that ends where `tail` does, most often in the midst of a block, with the blocks that live there alone.

    None when one of them is not in the pool. `kv.chain` has the keys of the full blocks.
    """
    size, index = books.block_size, books.index
    full, part = divmod(tail.num_computed, size)
    if len(tail.rows) != kv.num_missing(full + bool(part), full) or (tail.seat and not books.seats.num):
        return None
    rows = []
    for group in books.spec.groups:
        row: list[Block | None] = [None] * full
        for i in live_blocks(group.retention, tail.num_computed, size):
            if i < full:
                row[i] = index.find(group.index, kv.chain.keys[i], kv.chain.tokens[i])
                if row[i] is None:
                    return None
        rows.append(row)
    mark = books.states.at(kv, tail.num_computed)  # whose states those of the seat replace
    return Match(tail.num_computed, tuple(rows), num_queried, found=full * size, mark=mark)


def fill_tail(books: KVCacheManager, kv: SequenceKV, tail: Tail) -> None:
    """Write what lies behind the full blocks into the block and the seat of a sequence that took `match_to_tail`."""
    last = [table.blocks[-1] for table in kv.tables]
    for block, content in zip((block for block in last if block), tail.rows, strict=False):  # none at a block's border
        books.rows.fill(block, content)
    if tail.seat:
        books.rows.add([FillSeat(kv.seat, tail.seat)])


def _in_order(blocks: list[tuple[int, int, Block]], mark: Mark | None) -> list[Place]:
    """The rows of a checkpoint come last."""
    places = sorted(((group, i, block.id) for group, i, block in blocks), key=lambda place: (place[1], place[0]))
    return places + [(block.group, block.index, block.id) for block in (mark.blocks if mark else ())]
