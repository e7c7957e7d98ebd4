"""Compaction of prefixes that an administrator names: done once, between the steps of others, and shared afterwards.

probe 1, probe 2, ...    requests of the engine's own, which show the compactor what it scores by
gather                   what stays, into rows of its own, published under a derived key chain
pin                      these rows; pins of the exact prefix are let go
"""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from kvtrove.intake import Intake
from kvtrove.kv.compaction.compact import compact
from kvtrove.kv.compaction.compactor import AfterPrompt
from kvtrove.kv.compaction.reconstruct import Probe, Queries, Scores
from kvtrove.kv.compaction.scores import SINKS
from kvtrove.pinning import PinnedPrefix, PinnedPrefixes
from kvtrove.request import EngineError, RequestError, SamplingParams
from kvtrove.scheduler.scheduler import Scheduler
from kvtrove.scheduler.sequence import Request
from kvtrove.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)
PIECE = 512
"""Tokens that a probe repeats; the queries of so many are held, and their scores are computed at once."""
SHORTEST = 16
"""Least room for a repetition: a shorter one says little, and there would be hundreds."""
QUOTED = 8
"""Tokens of the piece before that a probe begins with, as in KVzip's code."""
FIRST, LATER = (
    "\n\nRepeat the previous context exactly.",
    "\n\nRepeat the part of the previous context exactly, starting with ",
)
ASK = SamplingParams(temperature=0, max_tokens=1, detokenize=False)


@dataclass(frozen=True)
class CompactedPrefix:
    """pin: what keeps it. blocks_before: that the exact prefix takes. probed: tokens that were computed to score it."""

    pin: PinnedPrefix
    blocks_before: int
    probed: int


@dataclass
class _Job:
    """One prefix. probes: prompts still to be computed, and what looks at each. request: the one at work."""

    tokens: array[int]
    salt: str
    adapter: str
    done: Future[CompactedPrefix]
    scores: Scores
    queries: Queries
    probes: deque[tuple[array[int], Probe]]
    probed: int = 0
    request: Request | None = None
    again: int = 1


def repetitions(
    tokens: array[int], tokenizer: Tokenizer, max_model_len: int
) -> list[tuple[tuple[int, int], array[int]]]:
    """How the model is asked to repeat a prefix: the first token of a piece and the one behind it, and what follows
    the prefix in the prompt of the probe. None where a context has no room for a repetition.
    """
    ends = tokenizer.encode(_answers(tokenizer), add_special_tokens=False)
    first, later = (tokenizer.encode(text, add_special_tokens=False) for text in (FIRST, LATER))
    room = max_model_len - 1 - len(tokens) - len(later) - QUOTED - len(ends)
    found, size = list[tuple[tuple[int, int], "array[int]"]](), min(PIECE, room)
    if size < SHORTEST:
        return found
    for start in range(min(SINKS, len(tokens)), len(tokens), size):
        stop = min(start + size, len(tokens))
        asked = first if start <= SINKS else [*later, *tokens[start - QUOTED : start]]
        found.append(((start, stop), array("i", [*asked, *ends, *tokens[start:stop]])))
    return found


def _answers(tokenizer: Tokenizer) -> str:
    """What the chat template writes between a user's message and the answer; empty without one."""
    template, mark = tokenizer.chat_template, "\u241f"
    if template is None:
        return ""
    text = template.render([{"role": "user", "content": mark}], add_generation_prompt=True)
    return text.rpartition(mark)[2]


class Compactions:
    """Of one engine; called on its thread. settle: executes what the books ask of the rows."""

    def __init__(
        self,
        scheduler: Scheduler,
        intake: Intake,
        tokenizer: Tokenizer,
        pins: PinnedPrefixes,
        settle: Callable[[], None],
    ) -> None:
        self._scheduler, self._kv, self._intake, self._tokenizer = scheduler, scheduler.kv, intake, tokenizer
        self._pins, self._settle = pins, settle
        self._jobs: deque[_Job] = deque()
        self._count = 0

    def begin(self, prompt_token_ids: Sequence[int], salt: str, adapter: str = "") -> Future[CompactedPrefix]:
        """Queue the compaction of the full blocks of a prompt. RequestError when there is nothing to gain."""
        compactor, size = self._kv.spec.compactor, self._kv.block_size
        if not isinstance(compactor, AfterPrompt) or not compactor.on_demand:
            raise RequestError(
                "this engine compacts no prefixes: start it with a cache that does, such as cache='kvzip=0.3' "
                "(--cache kvzip=0.3)",
                "cache",
            )
        if not self._kv.index.enabled:
            raise RequestError("the prefix cache is off, so that nobody would find a compacted prefix", "cache")
        tokens = array("i", prompt_token_ids[: len(prompt_token_ids) // size * size])
        if compactor.kept(len(tokens)) == len(tokens):
            least = next(n for n in range(size, 1 << 30, size) if compactor.kept(n) < n)
            raise RequestError(
                f"a prefix of {len(prompt_token_ids)} tokens is too short to be compacted; from {least} on something "
                "is gained",
                "prompt",
            )
        job = _Job(tokens, salt, adapter, Future(), Scores(len(tokens)), Queries(), deque())
        job.probes.extend(self._reconstructions(job) if compactor.reconstructs else self._observation(job, compactor))
        self._jobs.append(job)
        self.advance()
        return job.done

    def advance(self) -> None:
        """Begin what can begin, and finish what is computed; called after every step."""
        while self._jobs:
            job = self._jobs[0]
            if job.request is not None and not job.request.finished:
                return
            try:
                if job.request is not None and job.request.error is not None:
                    raise job.request.error
                job.request = None
                if job.probes:
                    self._begin(job, *job.probes.popleft())
                    return
                if (compacted := self._finish(job)) is None:
                    return
                job.done.set_result(compacted)
            except (RequestError, EngineError) as error:
                job.done.set_exception(error)
            self._jobs.popleft()

    def _begin(self, job: _Job, prompt: array[int], probe: Probe) -> None:
        self._count += 1
        job.probed += probe.window
        request = self._intake.request(f"compaction-{self._count}", prompt, ASK, job.salt, None, adapter=job.adapter)
        request.compactor, request.exact = probe, True
        self._scheduler.add(request)
        job.request = request

    def _observation(self, job: _Job, compactor: AfterPrompt) -> list[tuple[array[int], Probe]]:
        return [(job.tokens, job.queries.probe(max(1, compactor.window)))]

    def _reconstructions(self, job: _Job) -> list[tuple[array[int], Probe]]:
        """One a piece of the prefix. RequestError where not even a short one fits behind it."""
        asked = repetitions(job.tokens, self._tokenizer, self._intake.max_model_len)
        if not asked:
            raise RequestError(
                f"a prefix of {len(job.tokens)} tokens leaves no room in a context of {self._intake.max_model_len} to "
                "repeat a part of it; start with a larger max_model_len, or compact a shorter prefix",
                "prompt",
            )
        return [(job.tokens + behind, job.scores.probe(*piece, len(behind))) for piece, behind in asked]

    def _finish(self, job: _Job) -> CompactedPrefix | None:
        """Gather what stays and pin it. None when the prefix has to be computed once more."""
        books, compactor = self._kv, self._kv.spec.compactor
        assert compactor is not None
        self._settle()  # what the last probe has seen
        kv = books.open(self._intake.scope(job.salt, job.adapter))
        try:
            match = books.match(kv, job.tokens, len(job.tokens), exact=True)
            if match.num_tokens < len(job.tokens) or not books.allocate(kv, 0, match):
                if not job.again:
                    raise RequestError("the cache is too small to hold the prefix until it is compacted", "prompt")
                job.again -= 1
                self._begin(job, job.tokens, Queries().probe(1))
                return None
            exact, before = match.held, kv.num_blocks
            observed, scores = [job.queries.layers] if job.queries.layers else [], job.scores.layers or None
            if not compact(books, kv, job.tokens, compactor, observed, scores, shared=True):
                raise RequestError("no blocks are free for what stays of the prefix; try again later", "prompt")
            self._settle()
            self._pins.let_go_of(exact)
            pinned = self._pins.keep(kv, len(job.tokens))
        finally:
            books.free(kv)
        log.info(
            "compacted %d tokens with %s: %d blocks of %d", len(job.tokens), compactor.id, pinned.num_blocks, before
        )
        return CompactedPrefix(pinned, before, job.probed)
