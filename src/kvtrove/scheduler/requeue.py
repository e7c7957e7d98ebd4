"""Beginning again after a fault: every sequence goes back to the queue and recomputes what it had.

Nothing that a failed step left half-done survives this: sequences are their tokens, and tokens are only appended once
they are drawn. Blocks sealed by earlier steps stay in the prefix cache, so little of it is computed twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from kvtrove.kv.repair import forget_unfilled
from kvtrove.scheduler.scheduler import Scheduler
from kvtrove.scheduler.sequence import Request, Sequence


def requeue(scheduler: Scheduler) -> None:
    """Every unfinished sequence waits, in order of arrival, and holds nothing."""
    unfinished = [seq for request in scheduler.requests.values() for seq in request.unfinished]
    for kv in list(scheduler.kv.sequences.values()):  # also those that a step had opened for nobody yet
        scheduler.kv.free(kv)
    forget_unfilled(scheduler.kv)  # operations on other blocks do not matter: nobody holds them any more
    for seq in unfinished:
        seq.kv, seq.observed = scheduler.kv.open(seq.request.salt), []
        if seq.load is not None:
            scheduler.kv.let_go(seq.load)
        seq.waits_for = seq.load = seq.tail = seq.steady_spec = None
        scheduler.num_preemptions += seq.id in scheduler.running
        if seq.request.wants_prompt_logprobs:
            seq.request.prompt_logprobs = [None]
    scheduler.forget_step()
    unfinished.sort(key=lambda seq: (seq.request.arrival, seq.index))
    scheduler.waiting = deque(unfinished)


def hold_back(scheduler: Scheduler, wanted: Iterable[Request]) -> list[Sequence]:
    """Leave only the sequences of `wanted` in the scheduler, running or waiting; returns the others."""
    ids = {request.id for request in wanted}
    for seq in list(scheduler.running.values()):
        if seq.request.id not in ids and seq.id in scheduler.running:  # a beam takes its siblings along
            scheduler.preempt(seq)
    held = [seq for seq in scheduler.waiting if seq.request.id not in ids]
    scheduler.waiting = deque(seq for seq in scheduler.waiting if seq.request.id in ids)
    return held


def readmit(scheduler: Scheduler, held: Iterable[Sequence]) -> None:
    """Put sequences that were held back into the queue again, in order of arrival, but for those that ended since."""
    back = [seq for seq in held if seq.finish_reason is None]
    scheduler.waiting = deque(sorted([*scheduler.waiting, *back], key=lambda seq: (seq.request.arrival, seq.index)))
