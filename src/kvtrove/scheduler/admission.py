"""Admission: which waiting sequences join the running ones, and what each of them waits for meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from kvtrove.kv.keeping import freshen
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.snapshot import fill_tail, match_to_tail
from kvtrove.scheduler.compaction import plan_compaction
from kvtrove.scheduler.computing import BlocksInWork
from kvtrove.scheduler.limits import SchedulerLimits
from kvtrove.scheduler.moving import plan_move, take_moved
from kvtrove.scheduler.sequence import Sequence
from kvtrove.scheduler.sources import sources, tier_reason
from kvtrove.scheduler.waiting import Computing, Loading, Wait

if TYPE_CHECKING:
    from kvtrove.kv.prefix_cache import Match


class Admission:
    """First come, first served, while the whole prompt fits into what is free."""

    def __init__(
        self, kv: KVCacheManager, limits: SchedulerLimits, computing: BlocksInWork, clock: Callable[[], float]
    ) -> None:
        self.kv, self.limits, self.computing, self.clock = kv, limits, computing, clock
        self.prefill_rate = 0.0  # prompt tokens computed per second; 0 before anything was measured

    def admit(
        self, waiting: deque[Sequence], running: dict[int, Sequence], prefills: Iterable[Sequence], budget: int
    ) -> list[Sequence]:
        """Move sequences from `waiting` to `running`, in order, while their whole prompt fits; returns them.

        prefills: those running already that share `budget` tokens with them. One block per other running sequence and
        group stays in reserve, so that admitting a prompt does not soon preempt those who decode. A sequence that waits
        for something is passed over until it has it.
        """
        begun = list(prefills)
        first = len(begun)
        wanted = sum(seq.prefill_need for seq in begun)
        promised = sum(map(self._still_needed, begun))
        seats = sum(seq.seats for seq in running.values())
        passed_over: list[Sequence] = []
        while waiting and len(begun) < budget:
            if wanted >= budget and len(begun) >= self.limits.max_concurrent_prefills:
                break
            seq = waiting[0]
            if seats + seq.seats > self.limits.max_num_seqs:
                break
            if self._waits(seq):
                passed_over.append(waiting.popleft())
                continue
            limit = seq.reusable
            match = self.kv.match(seq.kv, seq.tokens, limit, seq.request.exact)
            if seq.kv.dropped:
                seq.tail = None
            if seq.tail is not None and seq.tail.num_computed <= limit:
                match = match_to_tail(self.kv, seq.kv, seq.tail, len(seq.tokens)) or match
            key = self.computing.run_after(seq, match.num_tokens, limit)
            if key is not None:
                self._branch(seq, key, running)
                seq.waits_for = Computing(key)
                passed_over.append(waiting.popleft())
                continue
            needed = self.blocks(len(seq.tokens) - seq.kv.dropped) - match.num_shared_blocks
            reserve = self.kv.spec.num_growing * sum(s.request is not seq.request for s in running.values())
            if needed + promised + reserve > self.kv.num_free_blocks:
                break
            if seq.load is None and self._load(seq, self._to_load(seq, match)):
                passed_over.append(waiting.popleft())
                continue
            self.kv.allocate(seq.kv, 0, match)
            if seq.tail is not None and seq.kv.num_computed == seq.tail.num_computed:
                fill_tail(self.kv, seq.kv, seq.tail)
            seq.tail = None
            if seq.load is not None:
                self.kv.let_go(seq.load)
            running[seq.id] = waiting.popleft()
            self._start(seq, limit, match)
            seats += seq.seats
            wanted += seq.prefill_need
            promised += self._still_needed(seq)
            begun.append(seq)
        waiting.extendleft(reversed(passed_over))
        return begun[first:]

    def expect(self, seq: Sequence, running: Collection[Sequence]) -> None:
        """`seq` has just been queued: what is cached of it leaves the pool late, what tiers have of it is on its way.

        Loads take blocks before their turn, so they may have half of those that nobody needs; the others begin when it
        is their turn.
        """
        match = self.kv.match(seq.kv, seq.tokens, seq.reusable, seq.request.exact)
        freshen(self.kv, match)
        match = self._to_load(seq, match)
        if seq.load is not None or not self.kv.is_worth_loading(match, self.prefill_rate):
            return
        coming = 0 if self.kv.transfers is None else self.kv.transfers.num_coming
        promised = sum(map(self._still_needed, running)) + self.kv.spec.num_growing * len(running) + coming
        if len(match.stored) + promised <= self.kv.num_free_blocks // 2:
            self._load(seq, match)

    def _to_load(self, seq: Sequence, match: Match) -> Match:
        """What tiers may add to the match: a sequence that comes with its states needs no checkpoint of them."""
        if seq.tail is None or not self.kv.spec.states or match.num_tokens == seq.tail.num_computed:
            return match
        return self.kv.match(seq.kv, seq.tokens, seq.reusable, seq.request.exact, any_state=True)

    def _load(self, seq: Sequence, match: Match) -> bool:
        """Begin to load what is stored of the match, if that is faster than computing it."""
        if not self.kv.is_worth_loading(match, self.prefill_rate):
            return False
        seq.load = self.kv.fetch(seq.kv, match)
        seq.waits_for = Loading(seq.load)
        return True

    def blocks(self, num_tokens: int) -> int:
        """Most blocks that one sequence of `num_tokens` holds while it is computed."""
        return self.kv.blocks_for(num_tokens, self.limits.max_num_batched_tokens)

    def _waits(self, seq: Sequence) -> bool:
        """Whether what `seq` waits for is still to come."""
        if seq.waits_for is not None and not self._is_over(seq.waits_for):
            return True
        seq.waits_for = None
        return False

    def _is_over(self, wait: Wait) -> bool:
        if isinstance(wait, Computing):
            return wait.key not in self.computing
        return wait.load.done if isinstance(wait, Loading) else wait.time <= self.clock()

    def _start(self, seq: Sequence, limit: int, match: Match) -> None:
        request = seq.request
        if request.num_cached_tokens is None:
            request.num_cached_tokens = min(seq.kv.num_computed, len(request.prompt))
            request.metrics.first_scheduled_time = self.clock()
            request.metrics.reused_from, request.metrics.load = sources(seq, self.prefill_rate)
            request.metrics.tier_reason = tier_reason(self.kv, seq, match)
            prompt = min(len(seq.tokens), len(request.prompt))
            request.metrics.num_dropped_tokens = seq.kv.dropped
            request.metrics.explanation = self.kv.explain(seq.kv, seq.tokens[:prompt], limit, request.exact)
        self.kv.states.plan(seq.kv, len(seq.tokens), request.borders)
        plan_compaction(seq)
        self.computing.begin(seq, limit)
        if not request.exact:
            plan_move(self.kv, seq, self.limits.cache_reuse)
            take_moved(self.kv, seq, self.limits.cache_reuse, self.computing)

    def _branch(self, seq: Sequence, key: bytes, running: dict[int, Sequence]) -> None:
        """`seq` will go on behind this block, which another one computes: there, it needs the states as well."""
        owner = running.get(self.computing.owner(key))
        if owner is not None:
            length = (seq.kv.chain.keys.index(key) + 1) * self.kv.block_size
            self.kv.states.keep_at(owner.kv, length)

    def _still_needed(self, seq: Sequence) -> int:
        return self.blocks(len(seq.tokens) - seq.kv.dropped) - seq.kv.num_blocks
