"""KVCacheManager: which block holds which tokens of which sequence. All that the scheduler sees of the cache.

The life of a sequence, one method per arrow; no bytes are touched here:

    open ──match──> allocate ──(the runner computes)──> commit ──> allocate ──> commit ──> ... ──> free
                       │                                  │
                       │ blocks for the tokens of a step  │ full blocks are sealed, keyed, published;
                       │ or nothing at all                │ those that left a window are released
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable

from kvtrove.kv.block import Block
from kvtrove.kv.chain import KeyChain, root_key, unscoped
from kvtrove.kv.events import EventKind, KVEvent
from kvtrove.kv.eviction.orders import Eviction
from kvtrove.kv.explain import explain
from kvtrove.kv.invariants import InvariantError, violations
from kvtrove.kv.loads import Load, Transfers
from kvtrove.kv.mark_rules import MarkRules
from kvtrove.kv.marks import Marks
from kvtrove.kv.matching import find_match
from kvtrove.kv.pins import Pin, Pins
from kvtrove.kv.pool import BlockPool
from kvtrove.kv.prefix_cache import Match, PrefixCache
from kvtrove.kv.reasons import Explanation
from kvtrove.kv.retention import num_stored
from kvtrove.kv.row_queue import RowQueue
from kvtrove.kv.rows import CopySeat, RowOp
from kvtrove.kv.sealing import Sealing
from kvtrove.kv.seats import Seats
from kvtrove.kv.shorten import resumable, shorten
from kvtrove.kv.spec import KVCacheSpec
from kvtrove.kv.states import States
from kvtrove.kv.stats import KVStats, stats_of
from kvtrove.kv.table import NEVER, SequenceKV
from kvtrove.kv.tiers.store import BlockStore

CHECK_EVERY_CALL = 2
CHECK_WHEN_IDLE = 1


class KVCacheManager:
    """One pool of blocks for all groups and sequences of an engine.

    root: fingerprint of the model; with the spec's fingerprint and a tenant's salt it isolates key chains.
    num_seats: sequences that hold blocks at once at most, where formats or states need seats. mark_rules: where
    checkpoints of states are made.
    check: 0 off, 1 checks I1-I8 when no sequence is open, 2 after every call that changes something; a violation raises
    InvariantError. crc: checksum of a row, recorded at seal and compared by `check()` at level 2 (I7).
    eviction: who leaves first, a name of config.EVICTION. store: tiers below the pool, where sealed rows are saved.
    """

    def __init__(
        self,
        spec: KVCacheSpec,
        num_blocks: int,
        *,
        root: bytes = b"",
        num_seats: int = 256,
        mark_rules: MarkRules | None = None,
        enable_prefix_caching: bool = True,
        check: int = 0,
        crc: Callable[[int], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
        eviction: str = "lru",
        store: BlockStore | None = None,
    ) -> None:
        if reasons := spec.check():
            raise ValueError("; ".join(reasons))
        if num_blocks < 1:
            raise ValueError(f"num_blocks: {num_blocks} must be at least 1")
        self.spec, self.block_size = spec, spec.block_size
        self.num_groups, self.num_blocks = len(spec.groups), num_blocks
        self._most = tuple(num_stored(group.retention, NEVER) for group in spec.groups)
        self.index = PrefixCache(self.num_groups, spec.mark_rows, enabled=enable_prefix_caching, clock=clock)
        self.eviction = Eviction.named(eviction, self.block_size, clock)
        self.pool = BlockPool(num_blocks, self._evict, clock, self.eviction.order())
        self.seats = Seats(num_seats if spec.seat_bytes else 0)
        self.marks = Marks(self, enabled=bool(spec.states) and enable_prefix_caching, clock=clock)
        self.sequences: dict[int, SequenceKV] = {}  # the open handles, by identity
        self.pins = Pins()
        self.on_event: Callable[[KVEvent], None] | None = None  # called with all that happens to published blocks
        self.crc = crc if check == CHECK_EVERY_CALL else None
        self._root = root
        self._check_level = check
        self.rows = RowQueue(self.crc)
        self.transfers = None if store is None else Transfers(self, store)
        self.states = States(self, mark_rules)
        self._sealing = Sealing(self)
        self._queries = self._hits = 0

    # ---- looking up ----

    def open(self, salt: bytes = b"") -> SequenceKV:
        """A handle that holds nothing yet. Sequences of different salts never share a block."""
        kv = self._handle(KeyChain(self.chain_root(salt), self.block_size), salt)
        self.verify()
        return kv

    def chain_root(self, salt: bytes) -> bytes:
        """32 bytes that every key of a sequence with this salt, perhaps `scoped`, descends from."""
        return root_key(self._root, self.spec.fingerprint, *unscoped(salt))

    def match(
        self, kv: SequenceKV, tokens: array[int], limit: int, exact: bool = False, *, any_state: bool = False
    ) -> Match:
        """What the empty `kv` could reuse for `tokens`, at most `limit` of them; 0 does not look. Changes no block.

        Only `kv.chain` grows, over the full blocks of `tokens`; later calls may append to `tokens` but not change it.
        Behind a prefix that was compacted for all, it goes on as the chain of that; exact: never. any_state: no
        checkpoint of states is looked for; such a match can be fetched, not taken over.
        """
        self._require_empty(kv)
        return find_match(self, kv, tokens, limit, exact=exact, any_state=any_state)

    def explain(self, kv: SequenceKV, tokens: array[int], limit: int, exact: bool = False) -> Explanation:
        """Why no more of the prompt `tokens` was reused, right after `kv` took over its match within `limit`."""
        return explain(self, kv, tokens, min(kv.num_computed, len(tokens)), limit, kv.found, exact=exact)

    def peek(self, tokens: array[int], salt: bytes, exact: bool = False) -> Explanation:
        """What would happen to a prompt that came now. Nothing is taken over, and no statistics change."""
        kv = self.open(salt)
        try:
            limit = len(tokens) - 1
            match = self.match(kv, tokens, limit, exact)
            reused = match.num_tokens + kv.dropped if match.num_tokens else 0
            return explain(self, kv, tokens, reused, limit, match.found, exact=exact)
        finally:
            self.free(kv)

    # ---- the tiers below ----

    def fetch(self, kv: SequenceKV, match: Match) -> Load:
        """Begin to load what `match` says is stored: a pin that ends in a hit once it is `done`. Never blocks.

        What the match found stays, and so does what arrives, until `let_go`.
        """
        assert self.transfers is not None, "only tiers hold what is elsewhere"
        load = self.transfers.fetch(kv.chain, match)
        self.verify()
        return load

    def poll(self) -> None:
        """Take in what the tiers have brought: sealed, published and held by its load."""
        if self.transfers is not None:
            self.transfers.poll()
            self.verify()

    def is_worth_loading(self, match: Match, prefill_rate: float) -> bool:
        """Whether loading what is stored takes less time than computing it at `prefill_rate` tokens per second.

        Whatever has not been measured yet speaks for loading.
        """
        return self.transfers is not None and self.transfers.is_worth(match, prefill_rate)

    def let_go(self, load: Load) -> bool:
        """Release what the load holds: its sequence matches now, or will never. False when that has happened before."""
        released = self.transfers is not None and self.transfers.let_go(load)
        if released:
            self.verify()
        return released

    @property
    def loads(self) -> Iterable[Pin]:
        """What loads hold."""
        return () if self.transfers is None else self.transfers.pins

    # ---- the steps of a sequence ----

    def allocate(self, kv: SequenceKV, num_new: int, match: Match | None = None) -> bool:
        """Room for `num_new` more tokens in every group, after taking over `match` on an empty `kv`.

            | matched, shared | computed before | num_new tokens of this step | rest of the open block |
            0                                   ^ num_computed                               capacity ^

        False when blocks or seats are short, or the match is not there any more (look again): nothing has changed then.
        """
        if match is None and kv.num_held + num_new <= kv.capacity:
            return True
        self._require_open(kv)
        if num_new < 0:
            raise ValueError(f"num_new: {num_new} must not be negative")
        start = kv.num_held
        if match is not None:
            self._require_empty(kv)
            start = match.num_tokens
            if not self.index.still_holds(kv.chain, match) or match.mark is not self.states.at(kv, match.num_tokens):
                return False
        stop = -(-(start + num_new) // self.block_size)
        missing = kv.num_missing(stop, max(start, kv.capacity) // self.block_size)
        if missing > self.pool.num_available - (match.num_idle_blocks if match else 0):
            return False
        if not self.seats.sit(kv):
            return False
        if match is not None:
            self._take_over(kv, match)
        if stop * self.block_size > kv.capacity:
            fresh = self.pool.allocate(missing)
            assert fresh is not None, "they were counted before"
            kv.fill(fresh, stop)
        self.verify()
        return True

    def commit(self, kv: SequenceKV, tokens: array[int], num: int, wrong: int = 0) -> None:
        """`num` more tokens were computed: tokens[num_computed : num_computed + num] of the sequence's `tokens`.

        Every block that became full is sealed and published, then blocks without a live token are released. The
        operations taken before must have been executed. wrong: drafts that were computed behind these and are not the
        sequence's. Where states have seen them nothing is committed (`States.decide`). ValueError beyond what was
        allocated.
        """
        num = self.states.decide(kv, num, wrong)
        before, after = kv.num_held, kv.num_held + num
        if num < 0 or after > kv.capacity:
            self._require_open(kv)
            raise ValueError(f"cannot commit {num} tokens after {before}: blocks are allocated for {kv.capacity}")
        self.rows.executed()
        if after >= kv.next_event:
            self._sealing.settle(kv, tokens, before, after)
        kv.num_computed += num
        self.states.computed(kv, after)
        self.verify()

    def fork(self, kv: SequenceKV) -> SequenceKV | None:
        """A second sequence with the same tokens: sealed blocks are shared, the open tail is copied. None when short.

        Blocks allocated for tokens that are not computed yet stay with the parent alone.
        """
        self._require_open(kv)
        full, part = divmod(kv.num_held, self.block_size)
        if self.seats.num and not self.seats.num_free:
            return None
        tails = self.pool.allocate(kv.num_missing(full + bool(part), full))
        if tails is None:
            return None
        child = self._handle(kv.chain.copy(full), kv.salt)
        if self.seats.sit(child) and kv.seat != child.seat:
            self.rows.add([CopySeat(kv.seat, child.seat)])
        child.inherit(kv)
        child.extend(table.blocks[:full] for table in kv.tables)
        for block in child.sealed_blocks():
            self.pool.acquire(block)
        if tails:
            child.fill(tails, full + 1)
            self.rows.copy((table.blocks[full] for table in kv.tables), (table.blocks[full] for table in child.tables))
        self.verify()
        return child

    def truncate(self, kv: SequenceKV, num_tokens: int) -> int | None:
        """Forget all tokens from `num_tokens` on, and the room allocated for more; returns how many are left.

            | SEALED | SEALED: cut -> private OPEN copy | dropped | dropped |
                              ^ num_tokens

        Formats that encode whole blocks cannot give back what one was made of: they are cut at the border below. States
        cannot go back: layers with states resume at their last mark.
        None when a block for the copy is short: nothing has changed then. ValueError when `num_tokens` is more than
        was computed, or when a window has already lost what the next query would read.
        """
        self._require_open(kv)
        states = self.marks if self.spec.states else None
        num_tokens = resumable(kv, self._sealing.windows, num_tokens, self.spec.whole_block, states)
        goes_back = num_tokens < kv.num_computed
        if not shorten(kv, num_tokens, self.pool, self.rows):
            return None
        if goes_back:
            self.states.load(kv, self.states.at(kv, num_tokens))
        self.verify()
        return num_tokens

    def free(self, kv: SequenceKV) -> None:
        """Give everything back. Sealed blocks stay findable; the sequence's end is evicted before its beginning."""
        if kv.is_freed:
            return
        if self.eviction.model is not None:
            self.eviction.model.end(kv.chain.keys[: kv.num_held // self.block_size], kv.use)
        self.states.release(kv)
        self.seats.leave(kv)
        kv.num_computed, kv.dropped, kv.capacity = 0, 0, -1
        del self.sequences[id(kv)]
        self.verify()

    def take_ops(self) -> list[RowOp]:
        """What has to be done to rows since the last call, to be executed in this order before the step writes."""
        if self.transfers is not None:
            self.rows.add(self.transfers.saves())
        return self.rows.take()

    # ---- keeping and forgetting ----

    def pin(self, kv: SequenceKV) -> Pin:
        """Keep every sealed block that `kv` holds now from being evicted, whatever becomes of `kv`."""
        self._require_open(kv)
        return self.pin_blocks(kv.sealed_blocks())

    def pin_blocks(self, blocks: list[Block]) -> Pin:
        """Keep sealed or cached blocks, those of a fresh `Match` for example."""
        pin = self.pins.add(blocks, self.pool)
        self.verify()
        return pin

    def unpin(self, pin: Pin) -> None:
        """Let go of what `pin` kept; a second call does nothing."""
        if self.pins.remove(pin, self.pool):
            self.verify()

    def reset_prefix_cache(self) -> int:
        """Forget every block that nobody holds, those of checkpoints as well; returns how many there were."""
        dropped = self.pool.drop_cached()
        self.verify()
        return dropped

    # ---- capacity and figures ----

    def blocks_for(self, num_tokens: int, chunk: int) -> int:
        """Most blocks that one sequence of `num_tokens` ever holds when a step computes up to `chunk` of them."""
        return self.spec.blocks_for(num_tokens, chunk)

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be allocated: FREE and CACHED."""
        return self.pool.num_available

    def stats(self) -> KVStats:
        return stats_of(self.pool, self.index, self._queries, self._hits, self.marks)

    def check(self) -> list[str]:
        """Every invariant that does not hold now, in words; empty when all do."""
        return violations(self)

    # ---- the parts ----

    def _evict(self, block: Block) -> None:
        if (mark := self.marks.of(block)) is not None:
            return self.states.evict(mark, block)
        if self.transfers is not None and not block.saved:
            self.rows.add([self.transfers.save(block)])
        self.index.evict(block)
        self.tell("evicted", block)

    def publish(self, block: Block) -> None:
        """Let others find a sealed block, here and in the tiers. An equal one that nobody holds gives way to it."""
        self.index.replace(block, self.pool)
        self.index.publish(block)
        if self.transfers is not None and block.published:
            self.transfers.sealed(block)
        self.tell("sealed", block)

    def tell(self, kind: EventKind, block: Block) -> None:
        if self.on_event is not None:
            self.on_event(KVEvent(kind, block.key, block.group, block.parent, block.tokens))

    def _handle(self, chain: KeyChain, salt: bytes) -> SequenceKV:
        kv = SequenceKV(self._most, chain, salt)
        self.sequences[id(kv)] = kv
        return kv

    def _take_over(self, kv: SequenceKV, match: Match) -> None:
        for row in match.blocks:
            for block in row:
                if block is not None:
                    self.pool.acquire(block)
                    block.use = kv.use
                    block.uses += 1
        if self.eviction.model is not None:
            self.eviction.model.begin(kv.chain.keys, kv.use)
        if match.num_tokens:
            kv.extend(match.blocks)
        elif kv.dropped:  # tiers had a compacted prefix, and it was not worth loading
            kv.begin(KeyChain(kv.chain.origin, self.block_size))
        self.states.load(kv, match.mark)
        if self.transfers is not None:
            self.transfers.used(match.held)
        kv.num_computed, kv.found = match.num_tokens + kv.dropped, match.found
        self._queries += match.num_queried
        self._hits += kv.num_computed

    def _require_open(self, kv: SequenceKV) -> None:
        if kv.is_freed:
            raise ValueError("the sequence was freed; open a new one")

    def _require_empty(self, kv: SequenceKV) -> None:
        self._require_open(kv)
        if kv.capacity:
            raise ValueError(f"can only be matched by an empty sequence, this one has {kv.num_computed} tokens")

    def verify(self) -> None:
        """InvariantError when the books contradict themselves, as often as `check` asks for."""
        due = self._check_level == CHECK_EVERY_CALL or (self._check_level == CHECK_WHEN_IDLE and not self.sequences)
        if due and (found := self.check()):
            raise InvariantError("\n".join(found))
