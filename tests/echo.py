"""The echo model: a stand-in for model and attention that proves what the cache holds.

A token's K is its id and its V its position, stored through the real arena in the echo format. To answer, the model
reads back through the block tables exactly what each group's retention says is live, and compares it with nothing: the
next token is a hash of what it read. A single wrong, missing or stale block changes every token that follows, so equal
output means an equal cache. `continuation` computes the same from the plain list of tokens.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvtrove.kv.arena import Arena
from kvtrove.kv.formats.dense import ECHO
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.retention import Full, Retention
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.kv.tiers.store import BlockStore
from kvtrove.request import Logprob, RequestMetrics, SamplingParams
from kvtrove.scheduler.output import (
    ModelOutput,
    SampledToken,
    SampleSpec,
    ScheduledSequence,
    SchedulerOutput,
    SequenceResult,
    accept,
)
from kvtrove.scheduler.scheduler import Scheduler, SchedulerLimits
from kvtrove.scheduler.sequence import Request
from tests.steps import StepRunner, token_values

VOCAB = 1000
END = 7


def echo_spec(block_size: int, *retentions: Retention) -> KVCacheSpec:
    layers = tuple(LayerKV(i, 1, 1, 1, ECHO, rule) for i, rule in enumerate(retentions or (Full(),)))
    return KVCacheSpec(layers, block_size)


def answer(seen: Sequence[tuple[int, int]], stream: int, position: int) -> int:
    """A token id (never END) from the (token, position) pairs that were read."""
    digest = hashlib.sha256(repr((sorted(seen), stream, position)).encode()).digest()
    token = int.from_bytes(digest[:4], "little") % VOCAB
    return token if token != END else END + 1


def candidate_logprob(token: int) -> float:
    """The echo model's log-probability of a beam candidate: irrational, so that sums of different tokens never tie."""
    return -1.0 - 0.01 * math.sqrt(token + 0.5)


def visible(tokens: Sequence[int], retentions: Sequence[Retention]) -> list[tuple[int, int]]:
    """(token, position) pairs that the last token of `tokens` reads, over all layers."""
    n = len(tokens) - 1
    positions = [p for rule in retentions for span in rule.live(n) for p in span] + [n] * len(retentions)
    return [(tokens[p], p) for p in positions]


def continuation(prompt: Sequence[int], num: int, spec: KVCacheSpec, stream: int = 0) -> list[int]:
    """What the echo model answers when everything is computed from scratch at every token."""
    tokens = list(prompt)
    for position in range(num):
        tokens.append(answer(visible(tokens, [layer.retention for layer in spec.layers]), stream, position))
    return tokens[len(prompt) :]


@dataclass
class EchoModel:
    """Executes SchedulerOutput on an arena. `computed`: tokens computed so far, in total."""

    spec: KVCacheSpec
    arena: Arena
    store: BlockStore | None = None
    computed: int = 0

    def __post_init__(self) -> None:
        self.runner = StepRunner(self.spec, self.arena, self.store)

    def execute(self, step: SchedulerOutput) -> ModelOutput:
        self.runner.execute(step, token_values)
        self.computed += step.num_tokens
        asked = [s for s in step.sequences if s.sample is not None or s.prompt_logprobs is not None]
        return ModelOutput({s.seq_id: self._answer(s) for s in asked})

    def _read(self, s: ScheduledSequence, drafts: int) -> list[tuple[int, int]]:
        """What the token reads that has `drafts` tokens of the step behind it."""
        size, n = self.spec.block_size, s.start + len(s.tokens) - 1 - drafts
        seen = []
        for layer in self.spec.layers:
            table = s.block_ids[self.spec.group_of[layer.layer]]
            view = self.arena.views(layer.layer)
            for position in [p for span in layer.retention.live(n) for p in span] + [n]:
                block = int(table[position // size])
                assert block >= 0, f"position {position} is live at {n} but its block is not held"
                token, stored = (int(view[plane][block, 0, position % size, 0]) for plane in ("k", "v"))
                seen.append((token, stored))
        return seen

    def _answer(self, s: ScheduledSequence) -> SequenceResult:
        specs = [] if s.sample is None else [s.sample, *s.verify]
        drawn = [self._draw(self._read(s, len(specs) - 1 - row), spec) for row, spec in enumerate(specs)]
        samples = drawn[0] if drawn else []
        after = [row[0] for row in drawn[1:]]
        report = None
        if s.prompt_logprobs is not None:
            report = [{token: Logprob(-float(token), 1)} for token in s.prompt_targets]
        accepted = accept(s.tokens[-len(after) :], samples[0], after) if after else []
        return SequenceResult(samples, report, accepted=accepted)

    def _draw(self, seen: list[tuple[int, int]], spec: SampleSpec) -> list[SampledToken]:
        if spec.candidates:
            tokens = [answer(seen, rank, spec.position) for rank in range(spec.candidates)]
            distinct = list(dict.fromkeys(tokens))
            return [SampledToken(token, candidate_logprob(token)) for token in distinct]
        return [SampledToken(answer(seen, stream, spec.position), -1.0) for stream in spec.streams]


@dataclass
class EchoEngine:
    """Scheduler, manager and echo model on a virtual clock: the whole engine without weights."""

    spec: KVCacheSpec
    num_blocks: int
    limits: SchedulerLimits = field(default_factory=SchedulerLimits)
    enable_prefix_caching: bool = True
    check: int = 2

    def __post_init__(self) -> None:
        self.time = 0.0
        self.model = EchoModel(self.spec, Arena(self.spec, self.num_blocks, "cpu"))
        self.kv = KVCacheManager(
            self.spec,
            self.num_blocks,
            enable_prefix_caching=self.enable_prefix_caching,
            check=self.check,
            crc=self.model.arena.crc,
            clock=lambda: self.time,
        )
        self.scheduler = Scheduler(self.kv, self.limits, lambda: self.time)
        self.requests: dict[str, Request] = {}
        self.last_step: dict[str, int] = {}

    def add(
        self,
        name: str,
        prompt: Sequence[int],
        params: SamplingParams | None = None,
        *,
        max_len: int = 512,
        salt: str = "",
    ) -> Request:
        params = params or SamplingParams(max_tokens=4)
        wanted = max_len if params.max_tokens is None else len(prompt) + params.max_tokens
        request = Request(
            id=name,
            arrival=len(self.requests),
            prompt=array("i", prompt),
            params=params,
            seed=0,
            salt=salt.encode(),
            max_len=min(max_len, wanted),
            end_token_ids=frozenset((END, *(params.stop_token_ids or ()))),
            metrics=RequestMetrics(self.time),
        )
        self.scheduler.add(request)
        self.requests[name] = request
        return request

    def step(self) -> SchedulerOutput:
        self.time += 1.0
        scheduled = self.scheduler.schedule()
        owner = {seq.id: seq.request.id for seq in self.scheduler.running.values()}
        self.last_step = {}
        for s in scheduled.sequences:
            self.last_step[owner[s.seq_id]] = self.last_step.get(owner[s.seq_id], 0) + len(s.tokens)
        self.scheduler.update(scheduled, self.model.execute(scheduled))
        return scheduled

    def run(self, max_steps: int = 2000) -> None:
        for _ in range(max_steps):
            if not self.scheduler.has_unfinished:
                return
            self.step()
        raise AssertionError(f"not finished after {max_steps} steps: the scheduler makes no progress")

    def outputs(self, name: str) -> list[list[int]]:
        return [seq.output.tolist() for seq in sorted(self.requests[name].sequences, key=lambda s: s.index)]
