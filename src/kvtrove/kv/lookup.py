"""What a prompt could reuse now: its longest prefix in the pool, and what the tiers could add to it."""

from __future__ import annotations

from typing import Protocol

from kvtrove.kv.books import Books
from kvtrove.kv.chain import KeyChain
from kvtrove.kv.loads import Transfers
from kvtrove.kv.marks import Marks, StateSearch
from kvtrove.kv.prefix_cache import Match, longest_prefix


class Sources(Books, Protocol):
    """Where a prefix may lie."""

    @property
    def marks(self) -> Marks: ...
    @property
    def transfers(self) -> Transfers | None: ...


def look_up(books: Sources, chain: KeyChain, num_tokens: int, most: int, *, any_state: bool) -> Match:
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
