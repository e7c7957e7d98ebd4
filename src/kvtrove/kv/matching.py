"""What an empty sequence could reuse of its prompt: blocks of its own prefix, or what compaction has left of one."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from kvtrove.kv.chain import KeyChain
from kvtrove.kv.compaction.shared import compacted_chains
from kvtrove.kv.marks import StateSearch
from kvtrove.kv.prefix_cache import Match, longest_prefix
from kvtrove.kv.table import SequenceKV

if TYPE_CHECKING:
    from kvtrove.kv.manager import KVCacheManager


def find_match(
    books: KVCacheManager, kv: SequenceKV, tokens: array[int], limit: int, *, exact: bool, any_state: bool
) -> Match:
    """`KVCacheManager.match`."""
    size = books.block_size
    kv.begin(KeyChain(kv.chain.origin, size) if kv.dropped else kv.chain)
    if not books.index.enabled or limit < 1:
        return Match(num_queried=len(tokens))
    kv.chain.extend(tokens, len(tokens) // size)
    most = min(limit, len(tokens)) // size
    for chain in () if exact else compacted_chains(books, kv.chain, tokens, most):
        chain.extend(tokens, (len(tokens) - chain.dropped) // size)
        match = _matched(books, chain, tokens, most - chain.dropped // size, with_states=False)
        if max(match.num_tokens, match.elsewhere) >= chain.kept:
            kv.begin(chain, books.spec.compactor)
            return match
    return _matched(books, kv.chain, tokens, most, with_states=books.states.there and not any_state)


def _matched(books: KVCacheManager, chain: KeyChain, tokens: array[int], most: int, *, with_states: bool) -> Match:
    """Of the first `most` blocks of the chain."""
    size, groups = books.block_size, books.spec.groups
    n, blocks = longest_prefix(books.index, groups, chain, most)
    found = n
    if with_states and found:
        n, blocks = longest_prefix(books.index, groups, chain, found, StateSearch(books.marks, chain))
    mark = books.marks.at(chain, n) if with_states else None
    match = Match(n * size, blocks, len(tokens), found=found * size, mark=mark)
    if n == most or books.transfers is None:
        return match
    return books.transfers.extended(chain, match, most, with_states=with_states)
