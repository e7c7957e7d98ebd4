"""The event loop: arrivals in order of time, and the replica whose clock is furthest behind takes the next step."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from itertools import pairwise

from kvtrove.config import ConfigError
from kvtrove.plan.simulate.prompts import Prompts, sessions
from kvtrove.plan.simulate.replica import Replica
from kvtrove.plan.simulate.results import RequestResult, SimulationResult
from kvtrove.plan.simulate.router import make_router
from kvtrove.plan.simulate.settings import INSTANT, SimulationSettings
from kvtrove.plan.traces.request import Trace, summarise
from kvtrove.request import RequestError
from kvtrove.scheduler.sequence import Request

NEVER = float("inf")
Progress = Callable[[int, int], None]


def simulate(trace: Trace, settings: SimulationSettings, progress: Progress | None = None) -> SimulationResult:
    """Replay `trace`. progress: called with (requests finished, all of them) now and then.

    ConfigError when the trace's blocks are not made of whole blocks of the cache.
    """
    if trace.block_size % settings.block_size:
        raise ConfigError(
            f"block_size: {settings.block_size} does not divide the {trace.block_size} tokens of the trace's blocks; "
            f"{trace.block_size} works"
        )
    run = _Run(trace, settings)
    while run.advance():
        if progress and len(run.results) % 100 == 0:
            progress(len(run.results), len(trace.requests))
    return run.result()


class _Run:
    def __init__(self, trace: Trace, settings: SimulationSettings) -> None:
        self.trace, self.settings = trace, settings
        self.replicas = [Replica(settings) for _ in range(settings.replicas)]
        self.router = make_router(settings.router)
        self.prompts = Prompts(trace)
        self.results: list[RequestResult] = []
        self.rejected: list[int] = []
        self.arrivals: list[tuple[float, int]] = []  # heap of (seconds, request index)
        self.num_users = 1
        self._after: dict[int, int] = {}  # request index -> the next one of its session, in closed mode
        self._idle_sessions: deque[int] = deque()  # first requests of sessions that wait for a user to be free
        self._in_flight: dict[str, tuple[int, int]] = {}  # request id -> (request index, replica)
        self._is_instant = settings.cost is INSTANT  # what came first has ended when the next comes at the same moment
        self._schedule_arrivals()

    def _schedule_arrivals(self) -> None:
        requests, settings = self.trace.requests, self.settings
        if not settings.closed:
            self.arrivals = [(r.arrival / settings.speed, i) for i, r in enumerate(requests)]
            self.num_users = len({r.session for r in requests} - {None}) or 1
        else:
            chains = list(sessions(self.trace))
            self._after = {a: b for chain in chains for a, b in pairwise(chain)}
            firsts = [chain[0] for chain in chains]
            self.num_users = min(settings.users or len(firsts), len(firsts))
            self.arrivals = [(requests[i].arrival / settings.speed, i) for i in firsts[: self.num_users]]
            self._idle_sessions = deque(firsts[self.num_users :])
        heapq.heapify(self.arrivals)

    def advance(self) -> bool:
        """One arrival or one step; False when nothing is left to do."""
        next_arrival = self.arrivals[0][0] if self.arrivals else NEVER
        busy = sorted((replica for replica in self.replicas if replica.is_busy), key=lambda r: r.now)
        if busy:
            replica, *others = busy
            if replica.now < next_arrival or (self._is_instant and replica.now == next_arrival):
                for request in replica.step(self._horizon(next_arrival, others)):
                    self._finish(request)
                return True
        if not self.arrivals:
            return False
        self._admit(*heapq.heappop(self.arrivals))
        return True

    def _horizon(self, next_arrival: float, others: list[Replica]) -> float:
        """Until when nothing can reach the replica that steps: answers of the others may make sessions go on."""
        if self._is_instant:
            return NEVER  # what it does now takes no time
        return min(next_arrival, others[0].now) if self.settings.closed and others else next_arrival

    def _admit(self, at: float, index: int) -> None:
        wanted = self.trace.requests[index]
        number = self.router.choose(wanted, self.replicas) if len(self.replicas) > 1 else 0
        request_id, tokens, new = str(index), self.prompts.tokens(index, wanted), max(1, wanted.output_tokens)
        size = self.trace.block_size  # 0 in a trace that says nothing of contents
        whole = [wanted.prompt_tokens // size * size] if size else []  # what another may repeat
        try:
            self.replicas[number].add(request_id, tokens, new, at, self.prompts.answer(index), whole)
        except RequestError:
            self.rejected.append(index)
            self._continue_session(index, at)
        else:
            self._in_flight[request_id] = (index, number)

    def _finish(self, request: Request) -> None:
        index, number = self._in_flight.pop(request.id)
        metrics, wanted = request.metrics, self.trace.requests[index]
        assert metrics.first_token_time is not None
        assert metrics.finished_time is not None
        new = max(1, wanted.output_tokens)
        self.results.append(
            RequestResult(
                index=index,
                session=wanted.session,
                replica=number,
                prompt_tokens=wanted.prompt_tokens,
                output_tokens=new,
                cached=request.num_cached_tokens or 0,
                arrival=metrics.arrival_time,
                ttft=metrics.first_token_time - metrics.arrival_time,
                tpot=(metrics.finished_time - metrics.first_token_time) / (new - 1) if new > 1 else None,
                finished=metrics.finished_time,
                preemptions=metrics.num_preemptions,
            )
        )
        self._continue_session(index, metrics.finished_time)

    def _continue_session(self, index: int, now: float) -> None:
        """In closed mode: the session's next request after its think time, or the next session in its place."""
        following = self._after.get(index)
        if following is not None:
            heapq.heappush(self.arrivals, (now + self.trace.requests[following].think_time, following))
        elif self._idle_sessions:
            heapq.heappush(self.arrivals, (now, self._idle_sessions.popleft()))

    def result(self) -> SimulationResult:
        results = sorted(self.results, key=lambda r: r.index)
        began = min((r.arrival for r in results), default=0.0)
        return SimulationResult(
            requests=results,
            rejected=len(self.rejected),
            rejected_tokens=sum(self.trace.requests[i].prompt_tokens for i in self.rejected),
            evictions=sum(replica.kv.stats().evictions for replica in self.replicas),
            steps=sum(replica.num_steps for replica in self.replicas),
            duration=max((r.finished for r in results), default=0.0) - began,
            kv_tokens=self.settings.kv_tokens,
            ideal_hit_ratio=summarise(self.trace).ideal_hit_ratio,
            num_users=self.num_users,
        )
