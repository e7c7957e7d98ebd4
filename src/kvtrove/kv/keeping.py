"""Soft pins: blocks that leave the cache last, for a while. They never keep a request from being admitted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kvtrove.kv.table import SequenceKV
from kvtrove.request import SoftPin

if TYPE_CHECKING:
    from kvtrove.kv.manager import KVCacheManager


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
