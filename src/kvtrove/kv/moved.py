"""Text that has moved: parts of a prompt that the cache has at other positions, behind other tokens.

    cached   | system prompt | old dialogue ....... | document ................ |
    prompt   | system prompt | document ................ | question |
               exact prefix    copied, K turned to its new position: not computed again

As llama.cpp's --cache-reuse: approximate, since what is copied was computed behind other tokens, and never without
being asked for. What follows lies on a bent key chain (`KeyChain.bend`), so that no exact request ever finds it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtrove.kv.block import Block
from kvtrove.kv.chain import key_behind
from kvtrove.kv.retention import Full

if TYPE_CHECKING:
    from kvtrove.kv.manager import KVCacheManager
    from kvtrove.kv.spec import KVCacheSpec
    from kvtrove.kv.table import SequenceKV

TOKEN_BYTES = 4


@dataclass(frozen=True)
class Moved:
    """Tokens start .. start + num_tokens - 1 of a prompt, which lie in `blocks`, one row of them a group, from token
    `offset` of the first one on. by: positions from there to here.
    """

    start: int
    num_tokens: int
    offset: int
    by: int
    blocks: tuple[tuple[Block, ...], ...]


def find_moved(books: KVCacheManager, tokens: array[int], start: int, least: int) -> Moved | None:
    """The first run of at least `least` tokens from `start` on that the cache has, without the last token of all.

    A run consists of whole cached blocks that follow one another, and of the end of the block before them.
    """
    size, content = books.block_size, tokens.tobytes()
    for at in range(start, len(tokens) - 1 - size):
        if (found := books.index.with_content(content[at * TOKEN_BYTES : (at + size) * TOKEN_BYTES])) is None:
            continue
        runs = [_run(books, content, start, at, block) for block in found]
        best = max(runs, key=lambda run: run.num_tokens, default=None)
        if best is not None and best.num_tokens >= least:
            return best
    return None


def _run(books: KVCacheManager, content: bytes, start: int, at: int, block: Block) -> Moved:
    """Around `block`, which has the tokens from `at` on."""
    size, index = books.block_size, books.index
    blocks = [block, *_behind(books, content, at + size, block)]
    stop = at + size * len(blocks)
    before, head = index.with_key(block.parent), 0
    if before is not None:
        while head < min(size, at - start) and _token(before.tokens, size - 1 - head) == _token(content, at - 1 - head):
            head += 1
    if head and before is not None:
        blocks.insert(0, before)
    groups = tuple(zip(*(index.in_groups(one) for one in blocks), strict=True))
    source = block.index * size - head
    length = min(stop, len(content) // TOKEN_BYTES - 1) - (at - head)
    return Moved(at - head, length if groups else 0, (size - head) % size, at - head - source, groups)


def _behind(books: KVCacheManager, content: bytes, at: int, block: Block) -> Iterator[Block]:
    """The blocks that continue `block` with the tokens from `at` on."""
    size, key = books.block_size * TOKEN_BYTES, block.key
    for begin in range(at * TOKEN_BYTES, len(content) - size + 1, size):
        part = content[begin : begin + size]
        key = key_behind(key, part)
        found = books.index.find(0, key, part)
        if found is None or None in books.index.in_groups(found):
            return
        yield found


def _token(content: bytes, i: int) -> bytes:
    return content[i * TOKEN_BYTES : (i + 1) * TOKEN_BYTES]


def take_over(books: KVCacheManager, kv: SequenceKV, tokens: array[int], moved: Moved) -> bool:
    """Let `kv`, computed up to `moved.start`, go on behind it; False when blocks are short: nothing changed."""
    pin = books.pin_blocks([block for row in moved.blocks for block in row])
    try:
        if not books.allocate(kv, moved.num_tokens):
            return False
        before, after, size = kv.num_held, kv.num_held + moved.num_tokens, books.block_size
        span = slice(before // size, -(-after // size))
        targets = [[block for block in table.blocks[span] if block is not None] for table in kv.tables]
        sources = tuple(tuple(block.id for block in row) for row in moved.blocks)
        kv.chain.bend(before // size, b"moved/1 %d %d " % (before, moved.offset) + moved.blocks[0][0].key)
        books.rows.shift(sources, targets, (moved.offset, before % size), moved.num_tokens, moved.by)
        books.commit(kv, tokens, moved.num_tokens)
        return True
    finally:
        books.unpin(pin)


def reasons_against_moving(cache: KVCacheSpec) -> list[str]:
    """Why tokens of this cache cannot move; empty when they can."""
    reasons = []
    if cache.compactor is not None:
        reasons.append(f"{cache.compactor.id.partition('/')[0]} gives up tokens, which does not go with it")
    if cache.states:
        reasons.append(f"layer {cache.states[0].layer} keeps a state of all tokens together, which cannot be moved")
    for layer in cache.layers:
        where, stored = f"layer {layer.layer}", cache.storage(layer.layer).format
        if layer.retention != Full():
            reasons.append(f"{where} reads {layer.retention.id}, and only layers that read everything have all tokens")
        elif len(stored.sides) < 2:
            reasons.append(f"{where} stores one vector for keys and values, which cannot be turned")
        elif stored.whole_block:
            reasons.append(f"{where} stores {stored.name}, which encodes whole blocks: take int8 or int4r")
    return reasons
