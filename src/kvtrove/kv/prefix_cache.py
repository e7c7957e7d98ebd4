"""Finding what was computed before: the index of published blocks, the longest usable prefix."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Protocol

from kvtrove.kv.block import Block
from kvtrove.kv.chain import KeyChain
from kvtrove.kv.evicted import EvictedKeys
from kvtrove.kv.groups import KVGroup
from kvtrove.kv.pool import BlockPool
from kvtrove.kv.retention import Full, live_blocks
from kvtrove.kv.tiers.store import group_key

if TYPE_CHECKING:
    from kvtrove.kv.marks import Mark


class PrefixCache:
    """(group, key) -> the one published block. enabled: whether blocks get keys and are published at all.

    num_groups: of layers. num_rows: of a checkpoint, each row in a group of its own behind them (`kv.marks`).
    """

    def __init__(
        self, num_groups: int, num_rows: int = 0, *, enabled: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.enabled = enabled
        self.evicted = EvictedKeys(clock=clock)
        self.num_groups = num_groups
        self._blocks: list[dict[bytes, Block]] = [{} for _ in range(num_groups + num_rows)]
        self._contents: dict[bytes, dict[Block, None]] | None = None
        self.num_duplicates = 0
        self.num_mismatches = 0

    def __len__(self) -> int:
        return sum(map(len, self._blocks))

    def publish(self, block: Block) -> None:
        """Make a sealed block findable under its group and key.

        When an equal block is published already (two sequences computed the same tokens side by side), the newcomer
        stays private: tables never change under a running step, so it is simply FREE once its sequence releases it.
        """
        if self._blocks[block.group].setdefault(block.key, block) is block:
            block.published = True
            if self._contents is not None and block.group == 0:
                self._contents.setdefault(block.tokens, {})[block] = None
        else:
            self.num_duplicates += 1

    def forget(self, block: Block) -> None:
        """Let nobody find the block any more."""
        del self._blocks[block.group][block.key]
        if self._contents is not None and block.group == 0:
            alike = self._contents[block.tokens]
            del alike[block]
            if not alike:
                del self._contents[block.tokens]

    def note_contents(self) -> None:
        """From now on, while nothing is published: blocks are found by their tokens as well (`kv.moved`)."""
        self._contents = {}

    def with_content(self, tokens: bytes) -> Iterable[Block] | None:
        """Blocks of the first group with these tokens, whatever is before them."""
        return None if self._contents is None else self._contents.get(tokens)

    def with_key(self, key: bytes) -> Block | None:
        """The block of the first group under a key."""
        return self._blocks[0].get(key)

    def in_groups(self, block: Block) -> tuple[Block | None, ...]:
        """What every group has under the key of a block."""
        return tuple(blocks.get(block.key) for blocks in self._blocks[: self.num_groups])

    def replace(self, block: Block, pool: BlockPool) -> None:
        """Make an equal block that nobody holds FREE: the one in use leaves late, and two would be one too many.

        Prompts compute again what is cached where a checkpoint of states is missing.
        """
        equal = self._blocks[block.group].get(block.key)
        if equal is not None and equal is not block and not equal.ref_count:
            block.saved, block.uses = equal.saved, equal.uses
            block.priority, block.keep_until = equal.priority, equal.keep_until
            self.forget(equal)
            self.num_duplicates += 1
            pool.discard(equal)

    def evict(self, block: Block) -> None:
        """Forget a block that has to make room, and remember when."""
        self.forget(block)
        self.evicted.add(block.key)

    def holds(self, block: Block) -> bool:
        return self._blocks[block.group].get(block.key) is block

    def find(self, group: int, key: bytes, tokens: bytes) -> Block | None:
        """The block published under `key` if it holds exactly `tokens`; anything else is a miss."""
        block = self._blocks[group].get(key)
        if block is None or block.tokens == tokens:
            return block
        self.num_mismatches += 1
        return None

    def holds_any(self, key: bytes, tokens: bytes) -> bool:
        """Whether some group of layers has the block."""
        return any(self.find(group, key, tokens) is not None for group in range(self.num_groups))

    def still_holds(self, chain: KeyChain, match: Match) -> bool:
        """Whether no block of the match was evicted since it was found."""
        return all(
            block is None or self.find(group, chain.keys[i], chain.tokens[i]) is block
            for group, row in enumerate(match.blocks)
            for i, block in enumerate(row)
        )


@dataclass(frozen=True, slots=True)
class Match:
    """What a prompt could reuse at the moment of the lookup.

    num_tokens: a multiple of block_size. blocks: per group the blocks to take over, None where none is needed.
    num_queried: tokens of the prompt. elsewhere: tokens of the prefix that there would be with the rows `stored`, each
    a (group, index of a block), which are in a tier below, those of a checkpoint last; 0 when they would not add to it.
    found: tokens whose blocks are there: more than num_tokens where no state was kept. mark: the state after
    num_tokens, of layers with one.
    """

    num_tokens: int = 0
    blocks: tuple[list[Block | None], ...] = ()
    num_queried: int = 0
    elsewhere: int = 0
    stored: tuple[tuple[int, int], ...] = ()
    found: int = 0
    mark: Mark | None = None

    @property
    def held(self) -> list[Block]:
        """The checkpoint and the blocks of all groups, the end of the prefix first."""
        columns = zip(*(reversed(row) for row in self.blocks), strict=True)
        blocks = [block for column in columns for block in column if block is not None]
        return blocks if self.mark is None else [*self.mark.blocks, *blocks]

    @property
    def num_shared_blocks(self) -> int:
        """Blocks that somebody holds: taking them over costs no free block."""
        return sum(block is not None and block.ref_count > 0 for row in self.blocks for block in row)

    @property
    def num_idle_blocks(self) -> int:
        """Blocks that nobody holds: free until the match is taken over."""
        return sum(block is not None and block.ref_count == 0 for row in self.blocks for block in row)


class Finder(Protocol):
    """What can look a block up."""

    def find(self, group: int, key: bytes, tokens: bytes) -> Block | None: ...


STORED = Block(-1)
"""Stands for a block that is not in the pool but in a tier."""


class WithStore:
    """The published blocks, and those that a store has: `keys` as `group_key` makes them."""

    def __init__(self, index: PrefixCache, keys: Container[bytes]) -> None:
        self._index, self._keys = index, keys

    def find(self, group: int, key: bytes, tokens: bytes) -> Block | None:
        found = self._index.find(group, key, tokens)
        return STORED if found is None and group_key(key, group) in self._keys else found


class Shrinks(Protocol):
    """A kind of layer that can resume after some lengths only."""

    def shrink(self, n: int) -> int:
        """n when it can resume after n blocks, else the next smaller length worth a try."""
        ...


def longest_prefix(
    cache: Finder, groups: Sequence[KVGroup], chain: KeyChain, limit: int, states: Shrinks | None = None
) -> tuple[int, tuple[list[Block | None], ...]]:
    """The most leading blocks, at most `limit`, after which every group holds all that its next query reads.

    Returns that number n, and per group the n blocks to take over (None: no query from here on needs it). states: of
    layers that keep a running state, where there are some.

    Full attention needs the whole chain, which is walked once from the front. A window needs the run of blocks before n
    only; it is searched from the back, and a missing block m rules out every length above m that still reads it:

        full    | x x x x x x x x x x . . |      n = 10 at most
        window  | . . . x x x x . x x . . |      needs 3 blocks: 10 and 9 read block 7, 7 reads 4..6: n = 7
    """
    searches = [_GroupSearch(cache, group, chain) for group in groups]
    n = limit
    for search in searches:
        if isinstance(search.retention, Full):
            n = search.walk(n)
    windows: list[Shrinks] = [search for search in searches if not isinstance(search.retention, Full)]
    windows += [] if states is None else [states]
    agreed = 0
    for limits in cycle(windows):
        before, n = n, limits.shrink(n)
        agreed = agreed + 1 if n == before else 0
        if agreed == len(windows):
            break
    return n, tuple(search.blocks(n) for search in searches)


class _GroupSearch:
    """One group's lookups in one match; however often n shrinks, no block of a window is looked up twice."""

    def __init__(self, cache: Finder, group: KVGroup, chain: KeyChain) -> None:
        self.retention = group.retention
        self._group = group.index
        self._cache = cache
        self._chain = chain
        self._found: dict[int, Block] = {}
        self._known: dict[int, tuple[int, int]] = {}  # span number -> half-open run of blocks known to be there

    def walk(self, n: int) -> int:
        """Blocks from the front until the first that is missing, at most n."""
        for i in range(n):
            if not self._find(i):
                return i
        return n

    def shrink(self, n: int) -> int:
        """n when every block read at length n is there, else the next smaller length worth a try.

        A token that is live at some length was live ever since it was written: a missing block m that is read at n is
        read at all lengths from m + 1 to n, so m itself is the next candidate.
        """
        size = self._chain.block_size
        for number, span in enumerate(self.retention.live(n * size)):
            low, high = span.start // size, -(-span.stop // size)
            known_low, known_high = self._known.get(number, (0, 0))
            i = known_low if known_low < high <= known_high else high
            while i > low:
                if not self._find(i - 1):
                    self._known[number] = (i, high)
                    return i - 1
                i -= 1
            self._known[number] = (i, high)
        return n

    def blocks(self, n: int) -> list[Block | None]:
        row: list[Block | None] = [None] * n
        for i in live_blocks(self.retention, n * self._chain.block_size, self._chain.block_size):
            row[i] = self._found[i]
        return row

    def _find(self, i: int) -> bool:
        block = self._cache.find(self._group, self._chain.keys[i], self._chain.tokens[i])
        if block is None:
            return False
        self._found[i] = block
        return True
