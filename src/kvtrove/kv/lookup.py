"""What a prompt could reuse now: its longest prefix in the pool, and what the tiers could add to it."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Protocol

from kvtrove.kv.books import Books
from kvtrove.kv.chain import KeyChain
from kvtrove.kv.compaction.shared import compacted_chains
from kvtrove.kv.loads import Transfers
from kvtrove.kv.marks import Marks, StateSearch
from kvtrove.kv.prefix_cache import Match, longest_prefix
from kvtrove.kv.table import SequenceKV

if TYPE_CHECKING:
    from kvtrove.kv.manager import KVCacheManager


class Sources(Books, Protocol):
    """Where a prefix may lie."""

    @property
    def marks(self) -> Marks: ...
    @property
    def transfers(self) -> Transfers | None: ...


def look_up(books: Sources, chain: KeyChain, num_tokens: int, most: int, *, any_state: bool = False) -> Match:
    """The match of a prompt of `num_tokens`, of which `most` blocks of the chain may be reused.

    any_state: whoever asks has the states of its own, so no checkpoint is looked for.
    """
    size, groups, marks = chain.block_size, books.spec.groups, books.marks
    with_states = bool(books.spec.states) and not any_state
    n, blocks = longest_prefix(books.index, groups, chain, most)
    found = n
    if with_states and found:
        n, blocks = longest_prefix(books.index, groups, chain, found, StateSearch(marks, chain))
    mark = marks.at(chain, n) if with_states else None
    match = Match(n * size, blocks, num_tokens, found=found * size, mark=mark)
    if n == most or books.transfers is None:
        return match
    return books.transfers.extended(chain, match, most, with_states=with_states)


def look_up_compacted(books: KVCacheManager, kv: SequenceKV, tokens: array[int], most: int) -> Match | None:
    """The match behind a prefix that was compacted for all, whose chain is that of `kv` from then on; None without one.

    most: full blocks of the tokens that may be reused.
    """
    for chain in compacted_chains(books, kv.chain, tokens, most):
        chain.extend(tokens, (len(tokens) - chain.dropped) // books.block_size)
        match = look_up(books, chain, len(tokens), most - -(-chain.dropped // books.block_size))
        if max(match.num_tokens, match.elsewhere) >= chain.kept:
            kv.begin(chain, books.spec.compactor)
            return match
    return None
