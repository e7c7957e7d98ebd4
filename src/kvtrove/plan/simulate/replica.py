"""One engine without a model: the real scheduler and cache, a runner that answers at once, a clock that the cost moves.

now ──schedule──> work ──cost model──> now + seconds ──update──> tokens, finished requests
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator

from kvtrove.kv.manager import KVCacheManager
from kvtrove.plan.cost import StepWork, work_of
from kvtrove.plan.simulate.settings import INSTANT, SimulationSettings, one_layer
from kvtrove.request import RequestMetrics, SamplingParams
from kvtrove.scheduler.output import ModelOutput, SampledToken, SchedulerOutput, SequenceResult
from kvtrove.scheduler.scheduler import Scheduler
from kvtrove.scheduler.sequence import Request

NO_END: frozenset[int] = frozenset()
MOST_BLOCKS = 1 << 40
"""Of a cache that never runs out: blocks come into being when they are first needed."""


class Replica:
    """now: seconds, the moment at which the next step may start."""

    def __init__(self, settings: SimulationSettings) -> None:
        self.now = 0.0
        self.num_steps = 0
        self._settings = settings
        self._cost = settings.cost
        cache = settings.cache or one_layer(settings.block_size)
        num_blocks = MOST_BLOCKS if settings.num_blocks is None else settings.num_blocks
        self.kv = KVCacheManager(cache, num_blocks, clock=lambda: self.now, eviction=settings.policy)
        self.scheduler = Scheduler(self.kv, settings.limits, lambda: self.now)
        self._answers: dict[str, SequenceResult] = {}
        self._arrivals = 0

    @property
    def load(self) -> int:
        """Requests that wait or run."""
        return len(self.scheduler.requests)

    @property
    def is_busy(self) -> bool:
        return self.scheduler.has_unfinished

    def add(
        self,
        request_id: str,
        prompt: array[int],
        new_tokens: int,
        arrival: float,
        answer: int,
        borders: Collection[int] = (),
    ) -> Request:
        """Queue a request whose every output token is `answer`. borders: lengths at which its messages end.

        RequestError when the cache can never hold it.
        """
        if not self.is_busy:
            self.now = max(self.now, arrival)
        self._arrivals += 1
        request = Request(
            id=request_id,
            arrival=self._arrivals,
            prompt=prompt,
            params=_greedy(new_tokens),
            seed=0,
            salt=b"",
            max_len=len(prompt) + new_tokens,
            end_token_ids=NO_END,
            metrics=RequestMetrics(arrival),
            borders=borders,
        )
        self.scheduler.add(request)
        self._answers[request_id] = SequenceResult([SampledToken(answer, 0.0)])
        return request

    def step(self, until: float) -> Iterator[Request]:
        """One step, and, as long as nothing but equal decodes would follow before `until`, those too.

        Yields the requests that finished.
        """
        scheduled = self.scheduler.schedule()
        self._advance(scheduled)
        touched = self.scheduler.update(scheduled, self._run(scheduled))
        finished = [request for request in touched if request.finished]
        for request in finished:
            del self._answers[request.id]
        yield from finished
        if self._settings.fast_forward and not finished and len(touched) == len(scheduled.sequences):
            self._fast_forward(until)

    def _run(self, scheduled: SchedulerOutput) -> ModelOutput:
        running = self.scheduler.running
        return ModelOutput(
            {s.seq_id: self._answers[running[s.seq_id].request.id] for s in scheduled.sequences if s.sample is not None}
        )

    def _advance(self, scheduled: SchedulerOutput) -> None:
        self.now += self._cost.seconds(work_of(scheduled.sequences))
        self.num_steps += 1

    def _fast_forward(self, until: float) -> None:
        """Let all running sequences decode as many tokens as the scheduler would give them one by one.

        While nobody waits, nobody finishes, no block fills up and nothing arrives, a step gives every sequence one
        token and changes nothing else. So the run ends where the first of these happens, and the clock moves by the
        cost of each step until then.
        """
        sequences = list(self.scheduler.running.values())
        if self.scheduler.waiting or not sequences or any(seq.num_uncomputed != 1 for seq in sequences):
            return
        most = min(min(seq.kv.next_event, seq.kv.capacity) - seq.kv.num_computed - 1 for seq in sequences)
        most = min(most, *(seq.request.max_len - len(seq.tokens) - 1 for seq in sequences))
        cached = sum(len(seq.tokens) for seq in sequences)
        steps = max(0, most) if self._cost is INSTANT else 0
        while steps < most and self.now < until:
            self.now += self._cost.seconds(StepWork(len(sequences), cached, 0, len(sequences)))
            cached += len(sequences)
            steps += 1
        if steps:
            self.num_steps += steps
            for seq in sequences:
                answer = self._answers[seq.request.id].samples[0].token_id
                seq.tokens.extend(array("i", [answer]) * steps)
                self.kv.commit(seq.kv, seq.tokens, steps)


def _greedy(new_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
