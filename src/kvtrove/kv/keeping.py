"""Blocks that leave the cache late: soft pins, and what queued requests wait for. Nothing of it delays admission."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kvtrove.kv.prefix_cache import Match
from kvtrove.kv.table import SequenceKV
from kvtrove.request import SoftPin

if TYPE_CHECKING:
    from kvtrove.kv.manager import KVCacheManager


def freshen(books: KVCacheManager, match: Match) -> None:
    """What was matched will be asked for soon: blocks that nobody holds leave as if they had been used just now.

    The end of the prefix still leaves before its beginning.
    """
    books.pool.freshen(match.held)


def keep(books: KVCacheManager, kv: SequenceKV, pins: Iterable[SoftPin]) -> None:
    """Let what a sequence, which is about to be freed, leaves sealed stay as its pins say: from now on.

    Of checkpoints of states that is the last one within the pin, where other prompts go on behind it.
    """
    now, size = books.pool.clock(), books.block_size
    for pin in pins:
        length = kv.num_held if pin.num_tokens is None else pin.num_tokens
        tables = (table.blocks[: -(-length // size)] for table in kv.tables)
        blocks = [block for table in tables for block in table if block is not None and block.sealed]
        books.pool.keep(blocks, pin.priority, now + pin.seconds)
        full = min(length // size, kv.num_held // size, len(kv.chain.keys))  # no keys: there is no prefix cache
        if (mark := books.marks.at(kv.chain, books.marks.before(kv.chain, full))) is not None:
            books.marks.keep(mark, pin.priority, now + pin.seconds)
