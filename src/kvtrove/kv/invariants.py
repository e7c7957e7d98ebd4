"""The invariants of the cache as sentences about what is wrong. Reads everything, changes nothing.

I9 (what a transfer reads or writes stays as it is until it is done) holds by construction and is not checked: transfers
have buffers of their own (`loads`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from kvtrove.kv.block import Block, BlockState
from kvtrove.kv.books import Books as OneCache
from kvtrove.kv.marks import Marks
from kvtrove.kv.pins import Pin
from kvtrove.kv.retention import live_blocks, num_stored
from kvtrove.kv.seats import NONE, Seats
from kvtrove.kv.table import SequenceKV


class Books(OneCache, Protocol):
    """Everything that the rules look at. crc: checksum of a row, None when rows are not compared."""

    @property
    def sequences(self) -> Mapping[int, SequenceKV]: ...
    @property
    def pins(self) -> Iterable[Pin]: ...
    @property
    def seats(self) -> Seats: ...
    @property
    def marks(self) -> Marks: ...
    @property
    def loads(self) -> Iterable[Pin]: ...
    @property
    def crc(self) -> Callable[[int], int] | None: ...
    def chain_root(self, salt: bytes) -> bytes: ...


class InvariantError(AssertionError):
    """The cache contradicts itself: a bug here, or a caller that changed what is not its own."""


def violations(books: Books) -> list[str]:
    """Everything that breaks I1 to I8 and I10 to I12, one sentence each."""
    rules = (_counts, _references, _keys, _eviction_order, _live_blocks, _bytes, _isolation, _seats, _marks)
    return [sentence for rule in rules for sentence in rule(books)]


def _counts(books: Books) -> Iterator[str]:
    pool = books.pool
    states = Counter(block.state for block in pool.blocks)
    used = states[BlockState.OPEN] + states[BlockState.SEALED]
    if pool.num_free + pool.num_cached + used != pool.num_blocks:
        yield f"I1: {pool.num_free} free + {pool.num_cached} cached + {used} used blocks are not {pool.num_blocks}"
    free = [block for block in pool.blocks if block.state is BlockState.FREE]
    if sorted(block.id for block in pool.free_blocks) != [block.id for block in free]:
        yield f"I1: the free list holds {len(pool.free_blocks)} blocks, {len(free)} are free"


def _references(books: Books) -> Iterator[str]:
    tables = Counter(b.id for _, _, b in _entries(books))
    pins = Counter(b.id for holders in (books.pins, books.loads) for pin in holders for b in pin.blocks)
    for block in books.pool.blocks:
        held, pinned = tables[block.id], pins[block.id]
        if block.ref_count != held + pinned:
            yield f"I2: {block} is held by {held} tables and {pinned} pins and loads"
        if block.state is BlockState.OPEN and (held, pinned) != (1, 0):
            yield f"I3: {block} is open in {held} tables and pinned {pinned} times"


def _keys(books: Books) -> Iterator[str]:
    for block in books.pool.blocks:
        if bool(block.key) != (block.sealed and books.index.enabled):
            yield f"I4: {block} is {'' if block.sealed else 'not '}sealed and has {'a' if block.key else 'no'} key"
        found = block.sealed and books.index.holds(block)
        if block.published != found:
            yield f"I4: {block} is {'' if block.published else 'not '}published, the index says otherwise"
    published = sum(block.published for block in books.pool.blocks)
    if published != len(books.index):
        yield f"I4: the index holds {len(books.index)} blocks, {published} are published"
    for kv, i, block in _entries(books):
        if block.sealed != (i < kv.num_held // books.spec.block_size):
            yield f"I4: {block} is entry {i} of a sequence of {kv.num_computed} computed tokens"


def _eviction_order(books: Books) -> Iterator[str]:
    order = [*books.pool.spare, *books.pool.cached]
    for block in order:
        if block.state is not BlockState.CACHED:
            yield f"I5: {block} is in the eviction order"
    cached = sum(block.state is BlockState.CACHED for block in books.pool.blocks)
    if not len(order) == len({block.id for block in order}) == cached == books.pool.num_cached:
        yield f"I5: the eviction order has {len(order)} blocks and says {books.pool.num_cached}, {cached} are cached"


def _live_blocks(books: Books) -> Iterator[str]:
    size = books.spec.block_size
    for kv in books.sequences.values():
        n = kv.num_held
        for group, table in zip(books.spec.groups, kv.tables, strict=True):
            held = {i for i, block in enumerate(table.blocks) if block is not None}
            room = -(-num_stored(group.retention, kv.capacity) // size)
            needed = set(live_blocks(group.retention, n, size)) | set(range(n // size, room))
            if held != needed:
                yield f"I6: group {group.index} at {n} tokens lacks blocks {needed - held} and keeps {held - needed}"
            if table.num_held != len(held):
                yield f"I6: group {group.index} counts {table.num_held} blocks and holds {len(held)}"
            ids = [-1 if block is None else block.id for block in table.blocks]
            if ids != table.ids.tolist():
                yield f"I6: group {group.index} hands out the ids {table.ids.tolist()} for the blocks {ids}"


def _bytes(books: Books) -> Iterator[str]:
    if books.crc is None:
        return
    for block in books.pool.blocks:
        if block.crc is not None and block.crc != books.crc(block.id):
            yield f"I7: the bytes of {block} changed after it was sealed"


def _isolation(books: Books) -> Iterator[str]:
    if not books.index.enabled:
        return
    for kv in books.sequences.values():
        root, chain = books.chain_root(kv.salt), kv.chain
        if chain.origin != root or (not kv.dropped and chain.root != root):
            yield f"I8: a sequence of salt {kv.salt!r} has the key chain of another model, format or tenant"
        if chain.dropped != kv.dropped or (kv.dropped and chain.root == root):
            yield f"I12: a sequence that gave up {kv.dropped} tokens has the chain of one that gave up {chain.dropped}"
    for kv, i, block in _entries(books):
        if block.published and kv.dropped and not kv.chain.shared:
            yield f"I12: {block} is entry {i} of a sequence that has given up tokens, and can be found"
        if block.sealed and (block.key, block.tokens) != (kv.chain.keys[i], kv.chain.tokens[i]):
            yield f"I8: {block} is entry {i} of a sequence with another prefix or another tenant"


def _entries(books: Books) -> Iterator[tuple[SequenceKV, int, Block]]:
    """Every (sequence, index, block) of every table."""
    for kv in books.sequences.values():
        for table in kv.tables:
            for i, block in enumerate(table.blocks):
                if block is not None:
                    yield kv, i, block


def _seats(books: Books) -> Iterator[str]:
    taken = [seat for kv in books.sequences.values() for seat in (kv.seat, kv.spare) if seat != NONE]
    if len(set(taken)) != len(taken) or len(taken) + books.seats.num_free != books.seats.num:
        yield f"I10: {len(taken)} sequences sit on {len(set(taken))} seats, {books.seats.num_free} are free"
    if books.seats.num and any(kv.capacity > 0 and kv.seat == NONE for kv in books.sequences.values()):
        yield "I10: a sequence holds blocks without a seat"


def _marks(books: Books) -> Iterator[str]:
    yield from books.marks.violations()
    for kv in books.sequences.values():
        lengths = [length for length, _ in kv.due]
        if lengths != sorted({length for length in lengths if length > kv.num_computed}):
            yield f"I11: checkpoints of a sequence of {kv.num_computed} computed tokens are due at {lengths}"
