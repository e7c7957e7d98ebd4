"""What happens when a step fails: who is at fault, what is repaired, and when the engine gives up.

    step fails ── one request was at work ──────────────────────────────> it fails; all others begin again
        │
        └─ nobody knows whose fault it is ──> the requests of the step run again in halves:
                                              [a b c d]  fails
                                              [a b] passes, [c d] fails
                                              [c] passes, [d] fails a second time  ──> d fails, and nobody else

Beginning again means to recompute (`scheduler.requeue`), so whoever is not at fault gets the tokens that it would have
got. While a half is tried everyone else waits; it has passed when each of its requests has drawn a token or ended.
The cache's invariants are checked after every fault, and books that are wrong are thrown away. Faults that keep coming
restart the engine on the loaded weights; it ends for good when it then cannot compute a single token.
"""

from __future__ import annotations

import gc
import logging
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.repair import rebuild
from kvtrove.plan.process import return_freed_memory
from kvtrove.request import EngineError, SamplingParams
from kvtrove.scheduler.output import ModelOutput, SampleSpec, ScheduledSequence, SchedulerOutput
from kvtrove.scheduler.requeue import hold_back, readmit, requeue
from kvtrove.scheduler.scheduler import Scheduler
from kvtrove.scheduler.sequence import Request
from kvtrove.scheduler.sequence import Sequence as TokenSequence

log = logging.getLogger(__name__)
MAX_IN_A_ROW = 16
"""So many steps that fail without one that passes restart the engine."""
MAX_FAULTS, WITHIN_SECONDS = 16, 60.0
"""So many faults, however many steps it took to find out whose they were, in so short a time restart it too."""


class EngineDeadError(RuntimeError):
    """The engine cannot compute anything any more: the process must be restarted."""


class NoProgressError(RuntimeError):
    """A step computed nothing although requests are unfinished."""


@dataclass(frozen=True)
class FaultStats:
    """Since the start: steps that failed, requests that were ended for it, restarts. degraded: not over yet."""

    steps: int = 0
    requests: int = 0
    restarts: int = 0
    degraded: bool = False


NO_FAULTS = FaultStats()


class Recovery:
    """Of one engine; called on its thread, in this order: `before`, the step, then `passed` or `failed`."""

    def __init__(
        self,
        scheduler: Scheduler,
        kv: KVCacheManager,
        execute: Callable[[SchedulerOutput], ModelOutput],
        clock: Callable[[], float],
    ) -> None:
        self._scheduler, self._kv, self._execute, self._clock = scheduler, kv, execute, clock
        self._groups: list[dict[str, int]] = []  # request id -> its tokens when the step failed; the last is tried
        self._held: list[TokenSequence] = []  # everyone else, meanwhile
        self._faults: deque[float] = deque(maxlen=MAX_FAULTS)
        self._steps = self._requests = self._restarts = self._in_a_row = 0

    @property
    def degraded(self) -> bool:
        return any(i in self._scheduler.requests for group in self._groups for i in group)

    @property
    def stats(self) -> FaultStats:
        return FaultStats(self._steps, self._requests, self._restarts, self.degraded)

    @property
    def num_held(self) -> int:
        return sum(seq.finish_reason is None for seq in self._held)

    def before(self) -> None:
        """Let nobody but the group that is tried into the next step."""
        if not self._groups and not self._held:
            return
        self._drop_passed()
        readmit(self._scheduler, self._held)
        self._held = hold_back(self._scheduler, self._members(self._groups[-1])) if self._groups else []
        if not self._groups:
            log.warning("the engine is ready again")

    def passed(self) -> None:
        """The step went well."""
        self._in_a_row = 0
        if self._groups:
            self._drop_passed()

    def failed(self, error: BaseException, members: Sequence[Request], culprit: Request | None) -> None:
        """Repair what the failed step of `members` left, and end whoever is at fault.

        culprit: the request that was at work. EngineDeadError when nothing can be computed any more.
        """
        self._steps += 1
        self._in_a_row += 1
        self._held = []  # the queue will hold everyone
        members = [r for r in members if not r.finished]
        ids = ", ".join(r.id for r in members[:20])
        log.error("a step of %d requests failed (%s): %s", len(members), ids, error, exc_info=error)
        if culprit is None and len(members) == 1 and members[0].id in self._tried:
            culprit = members[0]
        try:
            if culprit is not None:
                self._end(culprit, error)
            self._repair(error)
        except EngineDeadError:
            raise
        except Exception as second:
            log.critical("the repair failed too: the engine is restarted", exc_info=second)
            self._restart()
        if culprit is None:
            self._try_halves([r for r in members if not r.finished])

    @property
    def _tried(self) -> dict[str, int]:
        return self._groups[-1] if self._groups else {}

    def _members(self, group: dict[str, int]) -> list[Request]:
        return [self._scheduler.requests[i] for i in group if i in self._scheduler.requests]

    def _drop_passed(self) -> None:
        """Forget the groups in which everyone has drawn a token, or has ended."""
        while self._groups:
            waiting = {r.id: self._groups[-1][r.id] for r in self._members(self._groups[-1])}
            left = {i: n for i, n in waiting.items() if _num_tokens(self._scheduler.requests[i]) <= n}
            if left:
                self._groups[-1] = left
                return
            self._groups.pop()

    def _try_halves(self, members: list[Request]) -> None:
        """Members that fail together are tried apart; a single one is tried alone before it is blamed."""
        ids = {r.id for r in members}
        for group in self._groups:
            for i in ids & group.keys():
                del group[i]
        self._groups = [group for group in self._groups if group]
        middle = len(members) // 2
        for half in (members[middle:], members[:middle]):
            if half:
                self._groups.append({r.id: _num_tokens(r) for r in half})

    def _end(self, request: Request, error: BaseException) -> None:
        self._requests += 1
        log.error("request %s ends: %s: %s", request.id, type(error).__name__, error)
        told = f"the engine failed on this request ({request.id}): {type(error).__name__}; see the server's log"
        try:
            self._scheduler.fail(request, EngineError(told))
        except Exception:
            for seq in request.unfinished:
                seq.finish("abort")
            self._scheduler.requests.pop(request.id, None)
            raise

    def _repair(self, error: BaseException) -> None:
        if isinstance(error, MemoryError) or "alloc" in str(error):
            gc.collect()
            return_freed_memory()
        if not self._groups:
            self._faults.append(self._clock())
        often = len(self._faults) == MAX_FAULTS and self._clock() - self._faults[0] <= WITHIN_SECONDS
        if often or self._in_a_row >= MAX_IN_A_ROW:
            log.critical("%d steps failed in a row, the engine is restarted", self._in_a_row)
            return self._restart()
        requeue(self._scheduler)
        if broken := self._kv.check():
            log.critical("the cache's books are wrong and are thrown away: %s", "; ".join(broken[:5]))
            self._begin_again()
        return None

    def _begin_again(self) -> None:
        rebuild(self._kv)
        requeue(self._scheduler)

    def _restart(self) -> None:
        """Empty books and queues that are filled again; EngineDeadError when the model computes nothing then."""
        self._restarts += 1
        self._faults.clear()
        self._in_a_row = 0
        try:
            self._begin_again()
            self._probe()
        except Exception as error:
            raise EngineDeadError(f"the engine cannot compute any more: {error}") from error

    def _probe(self) -> None:
        """Compute one token of one sequence. Raises what is wrong."""
        kv, tokens = self._kv.open(), array("i", [0])
        if not self._kv.allocate(kv, 1):
            raise RuntimeError("an empty cache has no block")
        sample = SampleSpec(SamplingParams(temperature=0), 0, (0,), 0, tokens, array("i"))
        work = ScheduledSequence(0, tokens, 0, kv.block_ids(), sample, seat=kv.seat)
        try:
            error = self._execute(SchedulerOutput([work])).results[0].error
        finally:
            self._kv.free(kv)
        if error is not None:
            raise error


def _num_tokens(request: Request) -> int:
    """Grows with every token drawn, for beams too: theirs advance together."""
    return max((len(seq.tokens) for seq in request.sequences), default=0)
