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
    """Let the sealed blocks of a sequence, which is about to be freed, stay as its pins say: from now on.

    A block that others have pinned for longer stays for longer.
    """
    now, size = books.pool.clock(), books.block_size
    for pin in pins:
        most = None if pin.num_tokens is None else -(-pin.num_tokens // size)
        for table in kv.tables:
            for block in table.blocks[:most]:
                if block is not None and block.sealed:
                    block.priority = max(block.priority if block.keep_until > now else 0, pin.priority)
                    block.keep_until = max(block.keep_until, now + pin.seconds)
