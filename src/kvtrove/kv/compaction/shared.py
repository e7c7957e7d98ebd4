"""Prefixes that were compacted once and serve many requests: found without any list of them.

The first key of a compacted prefix follows from the exact key of its last block, the compactor and the number of
blocks. So whoever has the exact keys of a prompt can ask, for each of its blocks, whether the prefix up to there was
compacted: of this pool, and of the tiers, across restarts and between processes.

    exact       root -> key 0 -> key 1 -> key 2 -> key 3 -> ...
                                            └─ derived root -> KEPT 0 -> KEPT 1 -> key of tokens 48..63 -> ...
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvtrove.kv.chain import KeyChain
from kvtrove.kv.tiers.store import Found, group_key

if TYPE_CHECKING:
    from kvtrove.kv.manager import KVCacheManager


def compacted_chains(books: KVCacheManager, exact: KeyChain, tokens: array[int], most: int) -> Iterator[KeyChain]:
    """Chains of prefixes of up to `most` blocks whose first block is here or in a tier, the longest prefix first.

    exact: the chain of `tokens`, hashed so far.
    """
    compactor, size = books.spec.compactor, books.block_size
    if compactor is None or not compactor.on_demand:
        return
    found = []
    for full in range(most, 0, -1):
        held = full * size
        kept = compactor.kept(held)
        if kept == held:
            break  # and nothing shorter is compacted either
        chain = exact.derive(compactor.id.encode(), tokens, held, kept, shared=True)
        chain.extend(tokens, 1)
        found.append(chain)
    for chain, there in zip(found, _stored(books, found), strict=True):
        if there or books.index.find(0, chain.keys[0], chain.tokens[0]) is not None:
            yield chain


def _stored(books: KVCacheManager, chains: list[KeyChain]) -> list[bool]:
    if books.transfers is None or not chains:
        return [False] * len(chains)
    looked_up = books.transfers.store.lookup([group_key(chain.keys[0], 0) for chain in chains])
    return [found is Found.HERE for found in looked_up]
