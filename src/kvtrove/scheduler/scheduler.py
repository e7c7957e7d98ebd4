"""The scheduler: who computes how many tokens in the next step.

There is no prefill phase and no decode phase. Every sequence has `num_computed` tokens in the cache and catches up with
`len(tokens)`; a step gives each a number of tokens under one budget:

    1. decodes (one token left) first, so that a prompt never stalls the users who are reading;
    2. waiting requests come in, first come first served, while their whole prompt fits into what is free;
    3. prompts share the rest of the budget fairly (`policies.share`).

When blocks run out, the sequence that came last loses its own and computes again what the prefix cache has lost.
"""

from __future__ import annotations

import math
import time
from array import array
from collections import deque
from collections.abc import Callable
from functools import partial

from kvtrove.kv.keeping import keep
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.snapshot import park
from kvtrove.kv.table import SequenceKV
from kvtrove.request import EngineError, FinishReason, RequestError
from kvtrove.scheduler import beam
from kvtrove.scheduler.admission import Admission
from kvtrove.scheduler.compaction import compact_overdue, give_up_tokens
from kvtrove.scheduler.computing import BlocksInWork
from kvtrove.scheduler.drafts import Drafter
from kvtrove.scheduler.limits import SchedulerLimits, SchedulerStats
from kvtrove.scheduler.moving import take_moved
from kvtrove.scheduler.output import (
    NO_TOKENS,
    ModelOutput,
    SampledToken,
    ScheduledSequence,
    SchedulerOutput,
    SequenceResult,
)
from kvtrove.scheduler.pace import Pace
from kvtrove.scheduler.policies import end_of, share, too_long
from kvtrove.scheduler.sequence import Request, Sequence
from kvtrove.scheduler.work import scheduled_sequence

__all__ = ["Scheduler", "SchedulerLimits", "SchedulerStats"]


class Scheduler:
    """schedule() -> SchedulerOutput, then update() with what the model answered."""

    def __init__(
        self,
        kv: KVCacheManager,
        limits: SchedulerLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        drafter: Drafter | None = None,
    ) -> None:
        self.kv = kv
        self.drafter = drafter
        self.limits = limits or SchedulerLimits()
        self.clock = clock
        self.requests: dict[str, Request] = {}
        self.waiting: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}  # by sequence id, in order of admission
        self.num_preemptions = self.num_prompt_tokens = self.num_generation_tokens = 0
        self._next_seq_id = 0
        self._computing = BlocksInWork(kv.block_size)
        self.admission = Admission(kv, self.limits, self._computing, clock)
        self._step: dict[int, int] = {}  # sequence id -> tokens in the step being planned
        self.prompt_limit = self.limits.max_num_batched_tokens  # of prompt tokens in a step that also decodes (`Pace`)
        self.listed_weight = 1.0  # of one whose log-probabilities are reported, there (`Pace`)
        self.at_work: Request | None = None  # an error now is this request's: something is done for it alone

    def keep_pace(self, pace: Pace) -> None:
        """What has been measured of the steps so far decides how long prompts may take, and what is worth loading."""
        self.prompt_limit, self.listed_weight = pace.tokens, pace.weight
        self.admission.prefill_rate = pace.rate

    # ---- requests come and go ----

    def add(self, request: Request) -> None:
        """Queue a request. RequestError when the limits or the pool could not hold it even alone."""
        if request.width > self.limits.max_num_seqs:
            raise RequestError(
                f"n: {request.width} sequences are more than max_num_seqs ({self.limits.max_num_seqs})", "n"
            )
        if self._blocks_alone(request, request.max_len) > self.kv.num_blocks - self.kv.pins.num_blocks:
            usable = self.kv.num_blocks - self.kv.pins.num_blocks
            raise RequestError(too_long(request, usable, partial(self._blocks_alone, request)), "max_tokens")
        self.requests[request.id] = request
        if request.params.prompt_logprobs is not None:
            request.prompt_logprobs = [None]
        self.waiting.append(self._sequence(request, 0, request.prompt, self.kv.open(request.salt)))

    def abort(self, request_id: str) -> Request | None:
        """Forget a request at any moment; everything it held is free when this returns."""
        request = self.requests.get(request_id)
        if request is not None:
            for seq in request.unfinished:
                self.finish(seq, "abort")
        return request

    def finish(self, seq: Sequence, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """End a sequence, whoever decided it (stop token, stop string, caller), and release what it holds."""
        if self.drafter is not None and reason != "abort":
            self.drafter.finished(seq)
        seq.finish(reason, stop_reason)
        self._leave(seq)
        if seq.request.finished:
            self._retire(seq.request)

    def fail(self, request: Request, error: RequestError | EngineError) -> None:
        """End a request that cannot go on; every output of it that is still open is dropped."""
        request.error = error
        for seq in request.unfinished:
            self.finish(seq, "abort")

    def stop(self, seq: Sequence, stop_reason: str, num_output: int) -> None:
        """End a sequence at a stop string, found in the text of its first `num_output` tokens."""
        self.num_generation_tokens -= seq.cut(num_output)
        if seq.finish_reason is None:
            self.finish(seq, "stop", stop_reason)
        else:
            seq.finish("stop", stop_reason)  # it ended with, or behind, the token that completed the string

    @property
    def has_unfinished(self) -> bool:
        return bool(self.running or self.waiting)

    def stats(self) -> SchedulerStats:
        tokens = self.num_prompt_tokens, self.num_generation_tokens
        return SchedulerStats(len(self.running), len(self.waiting), self.num_preemptions, *tokens)

    def forget_step(self) -> None:
        """Nothing runs any more, nor is being computed."""
        self.running.clear()
        self._computing.clear()
        self._step, self.at_work = {}, None

    def _sequence(self, request: Request, index: int, tokens: array[int], kv: SequenceKV) -> Sequence:
        self._next_seq_id += 1
        seq = Sequence(self._next_seq_id, request, index, array("i", tokens), kv)
        seq.logprobs = None if request.params.logprobs is None else []
        seq.guide = request.guide
        request.sequences.append(seq)
        return seq

    def _leave(self, seq: Sequence) -> None:
        """Free the blocks of `seq` and take it out of the queues."""
        keep(self.kv, seq.kv, seq.request.metrics.soft_pins)
        self.kv.free(seq.kv)
        if seq.load is not None:
            self.kv.let_go(seq.load)
            seq.load = seq.waits_for = None
        self._step.pop(seq.id, None)
        self._computing.leave(seq)
        if self.running.pop(seq.id, None) is None and seq in self.waiting:
            self.waiting.remove(seq)

    def _retire(self, request: Request) -> None:
        request.metrics.finished_time = self.clock()
        self.requests.pop(request.id, None)

    def _blocks_alone(self, request: Request, length: int) -> int:
        """Blocks without which a request of `length` tokens cannot end: beams advance together or not at all."""
        return self.admission.blocks(length) * max(1, request.params.beam_width)

    def room_for_pins(self, max_model_len: int) -> int:
        """Blocks that may be pinned beside what the largest request, queued or still to come, needs to end."""
        alone = [self._blocks_alone(request, request.max_len) for request in self.requests.values()]
        return self.kv.num_blocks - self.kv.pins.num_blocks - max([*alone, self.admission.blocks(max_model_len)])

    # ---- a step ----

    def schedule(self) -> SchedulerOutput:
        """Pick the work of the next step and reserve its blocks."""
        self._step = {}
        self.kv.poll()
        compact_overdue(self.kv, self.running, self.preempt)
        self._plan_step()
        while not self._step and (self._decodes() or self._make_room()):
            self._plan_step()
        drafts = self._draft()
        sequences = [self._work(seq, self._step[i], drafts) for i, seq in self.running.items() if i in self._step]
        self.at_work = None
        return SchedulerOutput(sequences, self.kv.take_ops())

    def _work(self, seq: Sequence, num: int, drafts: dict[int, array[int]]) -> ScheduledSequence:
        self.at_work = seq.request
        return scheduled_sequence(seq, num, drafts.get(seq.id, NO_TOKENS))

    def _plan_step(self) -> None:
        for seq in self._decodes():
            self._give(seq, 1)
        budget = self.limits.max_num_batched_tokens - len(self._step)
        paced = bool(self._step)
        budget = min(budget, self.prompt_limit) if paced else budget
        prefills = [s for s in self.running.values() if s.id not in self._step and s.prefill_need]
        if self.waiting:
            prefills += self.admission.admit(self.waiting, self.running, prefills, budget)
        weights = [self.listed_weight if paced and s.request.wants_prompt_logprobs else 1.0 for s in prefills]
        most = [min(self.kv.states.until_mark(s.kv, s.prefill_need), s.until_pause) for s in prefills]
        needs = [math.ceil(num * weight) for num, weight in zip(most, weights, strict=True)]
        for seq, weight, num in zip(prefills, weights, share(budget, needs), strict=True):
            if num:
                self._give(seq, max(1, int(num / weight)))

    def _draft(self) -> dict[int, array[int]]:
        """Drafts for the decodes of the step: last, from what budget, rows of logits and blocks the others leave."""
        if self.drafter is None or not self._step:
            return {}
        draws = [seq for i, seq in self.running.items() if i in self._step and seq.request.pooling is None]
        decodes = [seq for seq in draws if seq.num_uncomputed == 1]
        num_tokens, limits = sum(self._step.values()), self.limits
        rows = max(limits.max_num_seqs, 1 + self.drafter.rules.most) - len(self._step)
        return self.drafter.plan(decodes, num_tokens, min(limits.max_num_batched_tokens - num_tokens, rows), self.kv)

    def _decodes(self) -> list[Sequence]:
        """Sequences with one token left. Beams advance together or not at all."""
        ready = [seq for seq in self.running.values() if seq.num_uncomputed == 1 <= seq.until_pause]
        return [seq for seq in ready if not seq.request.beam or self._beams_ready(seq.request)]

    def _beams_ready(self, request: Request) -> bool:
        return all(s.num_uncomputed == 1 and s.id in self.running for s in request.unfinished)

    def _give(self, seq: Sequence, num: int) -> None:
        """Let `seq` compute `num` tokens, preempting those that came after it when blocks are short."""
        while seq.id in self.running:
            if self.kv.allocate(seq.kv, num):
                self._step[seq.id] = num
                return
            if self._release_load():
                continue
            self.preempt(max(self.running.values(), key=lambda s: (s.request.arrival, s.index)))

    def _release_load(self) -> bool:
        """Take back the blocks of a load for whoever is last in the queue, who can load again."""
        for seq in reversed(self.waiting):
            if seq.load is not None and self.kv.let_go(seq.load):
                seq.load = seq.waits_for = None
                return True
        return False

    def preempt(self, last: Sequence) -> None:
        """Take the blocks of a sequence (of all beams of its request); it starts again at the head of the queue."""
        request = last.request
        for seq in reversed([s for s in request.unfinished if s.id in self.running] if request.beam else [last]):
            seq.tail = park(self.kv, seq.kv)
            self._leave(seq)
            seq.kv, seq.observed = self.kv.open(request.salt), []
            self.waiting.appendleft(seq)
            self.num_preemptions += 1
            request.metrics.num_preemptions += 1
        if request.wants_prompt_logprobs:
            request.prompt_logprobs = [None]

    def _make_room(self) -> bool:
        """Nothing can run, although some sequence waits for no more than its turn and for blocks.

        Parked beams hold them: preempt the last that came. Or loads do, for those behind it in the queue: let go.
        """
        head = next((seq for seq in self.waiting if seq.waits_for is None), None)
        if head is None:
            return False
        others = [s for s in self.running.values() if s.request is not head.request]
        if others:
            self.preempt(max(others, key=lambda s: (s.request.arrival, s.index)))
            return True
        released = [self.kv.let_go(s.load) for s in self.waiting if s is not head and s.load is not None]
        if any(released):
            return True
        if not self.running:
            raise RuntimeError(
                f"request {head.request.id!r} fits the empty cache but not what is left of it: "
                f"{self.kv.num_free_blocks} of {self.kv.num_blocks} blocks are free and the rest is pinned"
            )
        return False

    @property
    def is_waiting(self) -> bool:
        """Whether nothing runs, and every sequence in the queue waits for something that is still to come."""
        return not self.running and bool(self.waiting) and all(seq.waits_for is not None for seq in self.waiting)

    # ---- after the step ----

    def update(self, scheduled: SchedulerOutput, output: ModelOutput) -> list[Request]:
        """Record what was computed and drawn; returns the requests with news."""
        self.kv.rows.executed()
        now = self.clock()
        touched: dict[str, Request] = {}
        beams: dict[str, dict[int, list[SampledToken]]] = {}
        for done in scheduled.sequences:
            seq = self.running.get(done.seq_id)
            if seq is None:
                continue  # aborted since
            self.at_work = seq.request
            if done.observe and done.seq_id in output.observed:
                seq.observed.append(output.observed[done.seq_id])
            result = output.results.get(done.seq_id)
            if result is None:
                self._commit(seq, len(done.tokens))
                continue
            samples = result.samples
            if done.verify and self.drafter is not None:
                samples = self.drafter.accept(seq, done, result)
                self.num_generation_tokens += len(result.accepted)
            wrong = len(done.verify) - len(result.accepted)
            self._commit(seq, len(done.tokens) - wrong, wrong)
            request = seq.request
            touched[request.id] = request
            if result.error is not None:
                self.fail(request, result.error)
                continue
            if request.pooling is not None:
                self._pool(seq, result, now)
                continue
            if result.prompt_logprobs and request.prompt_logprobs is not None:
                request.prompt_logprobs.extend(result.prompt_logprobs)
            if not samples:
                continue
            self._begun(request, now)
            request.metrics.token_times.append(now)
            if request.beam:
                beams.setdefault(request.id, {})[seq.id] = samples
            else:
                self._extend(seq, samples)
        for request_id, candidates in beams.items():
            self.at_work = touched[request_id]
            if not self.at_work.finished:
                self._advance_beams(self.at_work, candidates)
        self.at_work = None
        return list(touched.values())

    def _pool(self, seq: Sequence, result: SequenceResult, now: float) -> None:
        """Keep what has become of a prompt so far; its vector is the end of it."""
        request = seq.request
        request.pooled, request.pool_carry = result.pooled, result.pool_carry
        if result.pooled is not None:
            self._begun(request, now)
            self.finish(seq, "stop")

    def _begun(self, request: Request, now: float) -> None:
        """The first token, or the vector, of a request is there."""
        if request.metrics.first_token_time is None:
            request.metrics.first_token_time = now
            self.num_prompt_tokens += len(request.prompt)

    def _commit(self, seq: Sequence, num: int, wrong: int = 0) -> None:
        before = seq.kv.num_held
        self.kv.commit(seq.kv, seq.tokens, num, wrong)
        self._computing.end(seq, before, seq.kv.num_held)
        give_up_tokens(self.kv, seq)
        take_moved(self.kv, seq, self.limits.cache_reuse, self._computing)

    def _extend(self, seq: Sequence, samples: list[SampledToken]) -> None:
        """Append the drawn token; after the prompt, fork one sequence per further stream first."""
        if len(samples) == 1:
            self._append(seq, samples[0])
            return
        streams = [seq, *(self._fork(seq, index) for index in range(1, len(samples)))]
        for stream, token in zip(streams, samples, strict=True):
            self._append(stream, token)

    def _append(self, seq: Sequence, token: SampledToken) -> None:
        seq.append(token)
        self.num_generation_tokens += 1
        end = end_of(seq)
        if end is not None:
            self.finish(seq, *end)

    def _fork(self, parent: Sequence, index: int) -> Sequence:
        """A sequence with the parent's tokens and cache; if no block is free for its tail, it queues and recomputes."""
        forked = self.kv.fork(parent.kv)
        kv = self.kv.open(parent.request.salt) if forked is None else forked
        child = self._sequence(parent.request, index, parent.tokens, kv)
        child.inherit(parent)
        if forked is None:
            self.waiting.appendleft(child)
        else:
            self.running[child.id] = child
        return child

    def _advance_beams(self, request: Request, candidates: dict[int, list[SampledToken]]) -> None:
        families = beam.advance(request, candidates)
        parents = {family[0].parent.id for family in families}
        for loser in [s for s in request.unfinished if s.id not in parents]:
            self._leave(loser)
            request.sequences.remove(loser)
        if not families:
            request.sequences = beam.winners(request)
            self._retire(request)
        for family in families:
            heirs = [family[0].parent] + [self._fork(c.parent, 0) for c in family[1:]]
            for heir, continuation in zip(heirs, family, strict=True):
                heir.append(continuation.token)
            self.num_generation_tokens += len(family)
        for index, seq in enumerate(request.sequences):
            seq.index = index
