"""Between the pool and the tiers below it: what is loaded, what is saved, and how fast that has been lately.

    seal ──> saved ──Spill──> store            write-behind: a few rows before every step, all others at their eviction
    match ──> Load ──get──> buffer ──Fill──> row, sealed and published ──> match again: a hit

A load holds what the match found and what has arrived so far, like a pin, until its sequence has taken it over. No
transfer ever touches the arena: `put` has copied a row when it returns, and `get` reads into a buffer of its own, so a
store that hangs or fails late can do no harm to blocks.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from kvtrove.kv.block import Block
from kvtrove.kv.books import Teller
from kvtrove.kv.chain import KeyChain
from kvtrove.kv.marks import Marks, StateSearch, seal
from kvtrove.kv.pins import Pin, Pins
from kvtrove.kv.prefix_cache import STORED, Match, WithStore, longest_prefix
from kvtrove.kv.row_queue import RowQueue
from kvtrove.kv.rows import Spill
from kvtrove.kv.tiers.store import BlockStore, Found, Outcome, Ticket, group_key

READ_AT_ONCE = 32 << 20  # bytes of one `get`
READS_AHEAD = 2  # of them per load
SAVE_AT_ONCE = 48 << 20  # bytes that may be on their way down
MOST_REFUSED = 65_536  # rows remembered that no tier took
NEWEST = 0.3  # weight of the newest figure in an average


@dataclass(eq=False, slots=True)
class Load:
    """A prefix on its way up. done: nothing more will come.

    rows: (group, index) in the chain of what is still to be asked for, in the order of the prefix. mark: rows of its
    checkpoint that have come. before: tokens that the pool could serve when it began. sources: rows that came, by name
    of the tier. seconds: from the first request to the last row. problem: what ended it early ("disk timeout").
    """

    pin: Pin
    chain: KeyChain
    before: int
    rows: deque[tuple[int, int]]
    began: float
    mark: list[Block] = field(default_factory=list)
    out: int = 0
    done: bool = False
    seconds: float = 0.0
    sources: Counter[str] = field(default_factory=Counter)
    problem: str | None = None


class Books(Teller, Protocol):
    """The side of the pool."""

    @property
    def rows(self) -> RowQueue: ...
    @property
    def marks(self) -> Marks: ...


def take_in(books: Books, chain: KeyChain, place: tuple[int, int], content: memoryview) -> Block | None:
    """Seal block `place` (group, index) of the chain, to be filled with the row `content`, and publish it, unless it is
    a row of a checkpoint, which is found when all of it is there.

    It has one reference, the caller's. None when no block is free for it.
    """
    blocks = books.pool.allocate(1)
    if blocks is None:
        return None
    [block] = blocks
    seal(block, chain, place)
    books.rows.fill(block, content)
    if block.group < books.index.num_groups:
        books.index.publish(block)
        books.tell("loaded", block)
    return block


class Transfers:
    """All that is on its way between one pool and one store. Called by the manager alone."""

    def __init__(self, books: Books, store: BlockStore) -> None:
        self.books, self.store = books, store
        self.row_bytes = books.spec.block_bytes
        self.pins = Pins()  # what loads hold until their sequences take it over
        self._reads: dict[int, tuple[Ticket, Load, list[tuple[int, int]], memoryview]] = {}  # by identity of the ticket
        self._unsaved: deque[tuple[Block, bytes]] = deque()
        self._refused: dict[bytes, None] = {}  # keys of the latest rows that no tier took
        self._bytes_down = 0
        self.rate = 0.0  # bytes per second of recent reads, waiting included

    # ---- up ----

    def extended(self, chain: KeyChain, match: Match, most: int, *, with_states: bool) -> Match:
        """The match, and what the store could add to it: of the first `most` blocks of the chain."""
        groups, marks = self.books.spec.groups, self.books.marks
        every = [group_key(key, group.index) for key in chain.keys[:most] for group in groups]
        every += [marks.witness(chain, n) for n in range(1, most + 1)] if with_states else []
        here = {key for key, found in zip(every, self.store.lookup(every), strict=True) if found is Found.HERE}
        if not here:
            return match
        states = StateSearch(marks, chain, here) if with_states else None
        n, rows = longest_prefix(WithStore(self.books.index, here), groups, chain, most, states)
        if n * chain.block_size <= match.num_tokens:
            return match
        stored = [(g, i) for i in range(n) for g, row in enumerate(rows) if row[i] is STORED]
        if with_states and marks.at(chain, n) is None:
            stored += [(marks.first_group + row, n - 1) for row in range(marks.num_rows)]
        return replace(match, elsewhere=n * chain.block_size, stored=tuple(stored))

    def fetch(self, chain: KeyChain, match: Match) -> Load:
        pool = self.books.pool
        load = Load(self.pins.add(match.held, pool), chain, match.num_tokens, deque(match.stored), pool.clock())
        self._read(load)
        return load

    def let_go(self, load: Load) -> bool:
        """Release what the load holds, and drop what still arrives of it; False when that has happened before."""
        if not load.done:
            self._stop(load)
        return self.pins.remove(load.pin, self.books.pool)

    def poll(self) -> None:
        """Take in the rows that have come since the last call. A load whose row failed asks for no more."""
        for ticket in self.store.poll():
            if ticket.kind == "put":
                self._saved(ticket)
                continue
            known = self._reads.pop(id(ticket), None)
            if known is None:
                continue
            _, load, places, buffer = known
            load.out -= 1
            if ticket.nbytes and ticket.seconds:
                self.rate += (NEWEST if self.rate else 1.0) * (ticket.nbytes / ticket.seconds - self.rate)
            for at, place in enumerate(places):
                row = buffer[at * self.row_bytes : (at + 1) * self.row_bytes]
                outcome = ticket.outcomes[at]
                if outcome is not Outcome.OK and outcome is not None:
                    load.problem = load.problem or f"{ticket.sources[at] or 'tier'} {outcome.value}"
                if load.done or outcome is not Outcome.OK or not self._take_in(load, place, row):
                    load.rows.clear()
                else:
                    load.sources[ticket.sources[at]] += 1
            self._read(load)

    def reason(self, chain: KeyChain, block: int) -> str | None:
        """Why no tier has this block of the chain, in words; None when nothing is known of it."""
        return self.store.reason(chain.keys[block]) if block < len(chain.keys) else None

    def reason_of_mark(self, chain: KeyChain, num_blocks: int) -> str | None:
        """Why no tier has the checkpoint after so many blocks."""
        return self.store.reason(self.books.marks.witness(chain, num_blocks))

    @property
    def num_coming(self) -> int:
        """Rows that loads will still ask for, or have asked for: blocks that will be taken."""
        reads = sum(len(places) for _, load, places, _ in self._reads.values() if not load.done)
        return reads + sum(len(load.rows) for load in {id(one): one for _, one, _, _ in self._reads.values()}.values())

    def is_worth(self, match: Match, prefill_rate: float) -> bool:
        tokens = match.elsewhere - match.num_tokens
        seconds = len(match.stored) * self.row_bytes / self.rate if self.rate else 0.0
        return tokens > 0 and (not prefill_rate or seconds * prefill_rate < tokens)

    def _take_in(self, load: Load, place: tuple[int, int], content: memoryview) -> bool:
        """Seal and publish a row that has come. False when no block is free for it."""
        group, i = place
        if self.books.index.find(group, load.chain.keys[i], load.chain.tokens[i]) is not None:
            return True  # somebody has computed it meanwhile, or a whole checkpoint of it
        block = take_in(self.books, load.chain, place, content)
        if block is None:
            return False
        block.saved = True
        load.pin.blocks.insert(0, block)  # the end of the prefix is released first
        marks = self.books.marks
        if group >= marks.first_group:
            load.mark.append(block)
            if len(load.mark) == marks.num_rows:
                marks.adopt(load.chain, i + 1, load.mark)
        return True

    def _read(self, load: Load) -> None:
        """Ask for as much as may be on its way at once."""
        while load.rows and load.out < READS_AHEAD:
            self._read_more(load)
        if not load.rows and not load.out and not load.done:
            load.done = True
            load.seconds = self.books.pool.clock() - load.began

    def _stop(self, load: Load) -> None:
        load.rows.clear()
        load.done = True

    def _read_more(self, load: Load) -> None:
        count = min(len(load.rows), max(1, READ_AT_ONCE // self.row_bytes))
        places = [load.rows.popleft() for _ in range(count)]
        buffer = np.empty(count * self.row_bytes, np.uint8).data
        rows = [buffer[i * self.row_bytes : (i + 1) * self.row_bytes] for i in range(count)]
        ticket = self.store.get([group_key(load.chain.keys[i], group) for group, i in places], rows)
        self._reads[id(ticket)] = ticket, load, places, buffer
        load.out += 1

    # ---- down ----

    def sealed(self, block: Block) -> None:
        """A block whose bytes are final waits to be saved."""
        self._unsaved.append((block, block.key))

    def used(self, blocks: Iterable[Block]) -> None:
        """A sequence goes on behind these blocks: what no tier took, as its disk was full, say, is offered again."""
        for block in blocks if self._refused else ():
            if (key := group_key(block.key, block.group)) in self._refused:
                del self._refused[key]
                block.saved = False
                self.sealed(block)

    def _saved(self, ticket: Ticket) -> None:
        """What was on its way down has ended."""
        self._bytes_down = max(0, self._bytes_down - len(ticket.keys) * self.row_bytes)
        for key, outcome in zip(ticket.keys, ticket.outcomes, strict=True):
            if outcome is not Outcome.OK:
                self._refused[key] = None
        while len(self._refused) > MOST_REFUSED:
            del self._refused[next(iter(self._refused))]

    def saves(self) -> list[Spill]:
        """The saves of this step: as many rows as may be on their way at once."""
        spills: list[Spill] = []
        while self._unsaved and self._bytes_down < max(SAVE_AT_ONCE, self.row_bytes):
            block, key = self._unsaved.popleft()
            if block.key == key and not block.saved:
                spills.append(self.save(block))
        return spills

    def save(self, block: Block) -> Spill:
        """Save a sealed block now, whatever is on its way."""
        block.saved = True
        self._bytes_down += self.row_bytes
        return Spill(block.id, group_key(block.key, block.group))

    @property
    def num_unsaved(self) -> int:
        """Blocks that wait to be saved, those included that have left since."""
        return len(self._unsaved)

    @property
    def is_busy(self) -> bool:
        """Whether something is on its way, up or down."""
        return bool(self._reads) or self._bytes_down > 0

    def reset(self) -> None:
        """The books begin again: nobody waits for anything, and what was to be saved is gone."""
        for _, load, _, _ in self._reads.values():
            self._stop(load)
        self.pins.clear()
        self._unsaved.clear()
        self._bytes_down = 0
