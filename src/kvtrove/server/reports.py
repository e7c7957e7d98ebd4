"""The cache report: for every request what was reused, where it parts from the best earlier prompt, and one reason.

The engine says what its cache knows (`kv.explain`); this remembers what earlier prompts of the same tenant looked like
and says the rest. Nothing crosses from one tenant, or one salt, to another.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NotRequired

from typing_extensions import TypedDict

from kvtrove.kv.reasons import Explanation, Reason
from kvtrove.server.engine_thread import EngineRequest
from kvtrove.server.observer import Arrival, Departure, Observer, PromptResult
from kvtrove.server.reports_change import Outline
from kvtrove.server.reports_place import SEARCHED, Conversation, around, place, volatile
from kvtrove.server.reports_recent import Best, RecentPrompts, Remembered, Tokens, as_tokens, common_prefix
from kvtrove.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)
MAX_REPORTS = 64  # of a tenant


class Divergence(TypedDict):
    """Where a prompt parts from the earlier one that it is most like. position: tokens that are the same.

    where: `system[0]`, `tools`, `messages[3]` or `template`; null for prompts without messages. before, here, earlier:
    the text before it, and how this prompt and the earlier one go on. volatile: kind of the changing value, if it looks
    like one: uuid, date, time, nonce, counter.
    """

    position: int
    where: str | None
    before: str
    here: str
    earlier: str
    volatile: str | None
    earlier_request_id: str
    earlier_seconds_ago: float


class LoadedPrefix(TypedDict):
    """Tokens that came from a tier below the pool. instead_seconds: what computing them takes, where that is known."""

    tier: str
    tokens: int
    seconds: float
    instead_seconds: float | None


class Kept(TypedDict):
    """A prefix that leaves the cache last, for so long after the answer. tokens: null is all, and the answer."""

    tokens: int | None
    seconds: float


class CacheReport(TypedDict):
    """How one prompt used the cache. reused_from: tokens by tier. evicted_seconds_ago: for `evicted`, if it is known.

    kept_tokens: of the prompt, those of an earlier answer whose ids were kept, rather than encoded again.
    first_divergence: null when the prompt only continues an earlier one, or nothing earlier begins like it.
    loaded: what of `reused_from` had to be read from a tier first.
    drafted_tokens, accepted_tokens: of its output, when there were drafts. continued_tokens: of its output, those that
    were drawn before a crash, and kept. dropped_tokens: that the cache gave up, for what followed.
    moved_tokens: of its prompt, taken over from other positions, approximately.
    tier_reason: why no tier brought more, in words.
    """

    request_id: str
    prompt_tokens: int
    reused_tokens: int
    reused_from: dict[str, int]
    computed_tokens: int
    reason: str
    evicted_seconds_ago: NotRequired[float | None]
    kept_tokens: NotRequired[int]
    loaded: NotRequired[LoadedPrefix]
    first_divergence: Divergence | None
    drafted_tokens: NotRequired[int]
    accepted_tokens: NotRequired[int]
    continued_tokens: NotRequired[int]
    dropped_tokens: NotRequired[int]
    moved_tokens: NotRequired[int]
    soft_pins: NotRequired[list[Kept]]
    tier_reason: NotRequired[str]


@dataclass(slots=True)
class _Pending:
    """A prompt in flight, and what was found when it came."""

    prompt: Remembered
    best: Best | None
    divergence: Divergence | None


@dataclass(slots=True)
class _TenantMemory:
    recent: RecentPrompts = field(default_factory=RecentPrompts)
    reports: deque[CacheReport] = field(default_factory=lambda: deque(maxlen=MAX_REPORTS))
    warned: deque[tuple[str, str, str | None]] = field(default_factory=lambda: deque(maxlen=MAX_REPORTS))


class Reports(Observer):
    """Observes every request; all methods belong to the event loop.

    always: every answer carries its report, asked for or not. on_report: told of every prompt's report.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        block_size: int,
        *,
        always: bool = False,
        on_report: Callable[[CacheReport], None] = lambda report: None,
    ) -> None:
        self.tokenizer, self.block_size, self.always = tokenizer, block_size, always
        self._on_report = on_report
        self._tenants: dict[str, _TenantMemory] = {}  # as many as there are keys
        self._pending: dict[str, _Pending] = {}  # by id of the engine's request

    # ---- requests come and go ----

    def on_arrival(self, arrival: Arrival) -> Mapping[str, Any] | None:
        """`comparison`: with the answer that the request names, if it names one."""
        asked, findings = getattr(arrival.body, "compared_with", None), {}
        memory = self._memory(arrival.tenant.name)
        client = _client_of(arrival.body)
        for request in arrival.requests:
            tokens, outline = as_tokens(request.prompt_token_ids), _outline(arrival)
            prompt = Remembered(
                arrival.id, arrival.time, request.scope, client, tokens, answer=arrival.answer, outline=outline
            )
            conversation = _conversation(arrival, request)
            best = memory.recent.best(prompt.tokens, prompt.salt)
            self._warn(memory, arrival.tenant.name, prompt, conversation)
            self._pending[request.id] = _Pending(prompt, best, self._divergence(prompt, best, conversation))
            if asked is not None:
                findings["comparison"] = memory.recent.compare(prompt, asked)
            memory.recent.add(prompt)
        return findings

    def on_departure(self, departure: Departure) -> Mapping[str, Any] | None:
        arrival = departure.arrival
        reports = []
        for request, result in zip(arrival.requests, departure.results, strict=True):
            pending = self._pending.pop(request.id, None)
            if pending is None:
                continue
            report = self._report(pending, result)
            if report is not None:
                if request.num_kept:
                    report["kept_tokens"] = request.num_kept
                self._memory(arrival.tenant.name).reports.append(report)
                self._on_report(report)
                reports.append(report)
            if result.finish_reasons:
                pending.prompt.finish(result.output_token_ids.get(0, []))
        wanted = self.always or getattr(arrival.body, "cache_report", None) is True
        if not wanted or not reports:
            return None
        return {"cache_report": reports[0]} if len(arrival.requests) == 1 else {"cache_reports": reports}

    # ---- what others ask ----

    def of_tenant(self, name: str) -> list[CacheReport]:
        """The latest reports of one tenant, newest first."""
        return list(reversed(self._memory(name).reports))

    def prompts_of(self, tenant: str, request_id: str) -> list[tuple[CacheReport, Tokens]]:
        """Reports and tokens of a request's prompts, in their order; empty when they are forgotten, or another's."""
        memory = self._memory(tenant)
        found = [report for report in memory.reports if report["request_id"] == request_id]
        prompts = [prompt.tokens[: prompt.num_prompt] for prompt in memory.recent.of(request_id)]
        return list(zip(found, prompts, strict=False))

    def preview(
        self, tenant: str, prompt: Remembered, explanation: Explanation, conversation: Conversation
    ) -> CacheReport:
        """The report of a prompt that is not run. It is not remembered."""
        best = self._memory(tenant).recent.best(prompt.tokens, prompt.salt)
        reason = conclude(explanation, best, self.block_size)
        tiers = {"memory": explanation.reused_tokens} if explanation.reused_tokens else {}
        divergence = self._divergence(prompt, best, conversation)
        return _written(prompt.request_id, explanation, reason, tiers, divergence)

    # ---- the parts ----

    def _memory(self, tenant: str) -> _TenantMemory:
        return self._tenants.setdefault(tenant, _TenantMemory())

    def _report(self, pending: _Pending, result: PromptResult) -> CacheReport | None:
        """None for a request that ended before the engine began it."""
        explanation = result.metrics.explanation if result.metrics else None
        if result.metrics is None or explanation is None:
            return None
        reason = conclude(explanation, pending.best, self.block_size)
        tiers = dict(result.metrics.reused_from)
        report = _written(pending.prompt.request_id, explanation, reason, tiers, pending.divergence)
        if (load := result.metrics.load) is not None:
            report["loaded"] = {
                "tier": load.tier,
                "tokens": load.tokens,
                "seconds": load.seconds,
                "instead_seconds": load.instead,
            }
        if result.metrics.num_draft_tokens:
            report["drafted_tokens"] = result.metrics.num_draft_tokens
            report["accepted_tokens"] = result.metrics.num_accepted_tokens
        if result.metrics.num_continued_tokens:
            report["continued_tokens"] = result.metrics.num_continued_tokens
        if result.metrics.num_dropped_tokens:
            report["dropped_tokens"] = result.metrics.num_dropped_tokens
        if result.metrics.num_moved_tokens:
            report["moved_tokens"] = result.metrics.num_moved_tokens
        if result.metrics.tier_reason is not None:
            report["tier_reason"] = result.metrics.tier_reason
        if result.metrics.soft_pins:
            report["soft_pins"] = [{"tokens": p.num_tokens, "seconds": p.seconds} for p in result.metrics.soft_pins]
        return report

    def _divergence(self, prompt: Remembered, best: Best | None, conversation: Conversation) -> Divergence | None:
        if best is None or best.common == min(len(prompt.tokens), len(best.earlier.tokens)):
            return None
        return divergence(self.tokenizer, prompt, best, conversation)

    def _warn(self, memory: _TenantMemory, tenant: str, prompt: Remembered, conversation: Conversation) -> None:
        """Log once where a client's consecutive prompts part early at something that looks volatile."""
        previous = memory.recent.last_of(prompt.client, prompt.salt)
        if previous is None:
            return
        common = common_prefix(prompt.tokens, previous.tokens)
        total = len(prompt.tokens)
        if 2 * common >= min(total, len(previous.tokens)):
            return
        found = divergence(self.tokenizer, prompt, Best(previous, common), conversation)
        kind, where = found["volatile"], found["where"]
        if kind is None or (prompt.client, kind, where) in memory.warned:
            return
        memory.warned.append((prompt.client, kind, where))
        text = (
            f"prompts of one client differ from token {common:,} of {total:,} ({where or 'prompt'}), where a {kind} "
            "stands: nothing behind it can be reused; move it to the end of the prompt (--stable-prefix does, where it "
            "opens the system message), or leave it out"
        )
        facts = {"request_id": prompt.request_id, "tenant": tenant, "position": common, "volatile": kind}
        log.warning("%s", text, extra={"facts": facts})


def divergence(tokenizer: Tokenizer, prompt: Remembered, best: Best, conversation: Conversation) -> Divergence:
    """Describe where `prompt` parts from the earlier one."""
    earlier, position = best.earlier, best.common
    before, here = around(tokenizer, prompt.tokens, position)
    wide_before, wide_here = around(tokenizer, prompt.tokens, position, SEARCHED)
    _, wide_there = around(tokenizer, earlier.tokens, position, SEARCHED)
    return {
        "position": position,
        "where": place(tokenizer, conversation, prompt.tokens, position),
        "before": before,
        "here": here,
        "earlier": around(tokenizer, earlier.tokens, position)[1],
        "volatile": volatile(wide_before, wide_here, wide_there),
        "earlier_request_id": earlier.request_id,
        "earlier_seconds_ago": round(max(0.0, prompt.time - earlier.time), 3),
    }


def conclude(explanation: Explanation, best: Best | None, block_size: int) -> Reason:
    """The reason, once it is known how the most similar earlier prompt goes on after what was reused.

    this prompt    | reused      | next block  | ...           COLD and DIVERGED are the cache's words for a next
    earlier one    | the same ...... | differs, ends, or not   block that it knows nothing of
    """
    if explanation.reason not in (Reason.COLD, Reason.DIVERGED):
        return explanation.reason
    if best is None:
        return explanation.reason
    if best.common >= explanation.reused_tokens + block_size:
        return Reason.EVICTED if best.earlier.complete else Reason.COLD
    if best.common < min(explanation.prompt_tokens, len(best.earlier.tokens)):
        return Reason.DIVERGED
    return Reason.FULL if explanation.reused_tokens else Reason.BELOW_BLOCK_GRANULARITY


def offline_report(
    tokenizer: Tokenizer,
    prompts: tuple[list[int], list[int]],
    conversation: Conversation,
    block_size: int,
    foreign: Reason | None,
) -> CacheReport:
    """The report of the second prompt if the first were all that the cache holds. `conversation`: of the second.

    foreign: the reason why the second could not reuse anything even if it were equal.
    """
    first, second = (remembered(name, "", as_tokens(ids)) for name, ids in zip("AB", prompts, strict=True))
    common = common_prefix(second.tokens, first.tokens)
    total = len(second.tokens)
    reused = 0 if foreign else min(common, total - 1) // block_size * block_size
    if foreign is not None:
        reason = foreign
    elif total < block_size:
        reason = Reason.BELOW_BLOCK_GRANULARITY
    elif reused == total // block_size * block_size:
        reason = Reason.FULL
    elif common == total:
        reason = Reason.LAST_TOKEN_RECOMPUTED
    else:
        reason = conclude(Explanation(total, reused, Reason.COLD), Best(first, common), block_size)
    parts = common < min(total, len(first.tokens))
    found = divergence(tokenizer, second, Best(first, common), conversation) if parts else None
    tiers = {"memory": reused} if reused else {}
    return _written("B", Explanation(total, reused, reason), reason, tiers, found)


def remembered(request_id: str, salt: str, tokens: Tokens) -> Remembered:
    """A prompt that comes now."""
    return Remembered(request_id, time.monotonic(), salt, "", tokens)


def tool_names(body: Any) -> list[str]:
    """Names of the tools of a request, in whichever API's shape."""
    names = (getattr(getattr(tool, "function", tool), "name", None) for tool in getattr(body, "tools", None) or ())
    return [name for name in names if name]


def _conversation(arrival: Arrival, request: EngineRequest) -> Conversation:
    return Conversation(request.prompt, arrival.messages or (), tool_names(arrival.body))


def _outline(arrival: Arrival) -> Outline | None:
    if arrival.messages is None or not hasattr(arrival.body, "compared_with"):
        return None
    tools = getattr(arrival.body, "tools", None) or ()
    return Outline.of(arrival.messages, [tool.model_dump(exclude_unset=True) for tool in tools])


def _client_of(body: Any) -> str:
    return getattr(body, "prompt_cache_key", None) or getattr(body, "user", None) or ""


def _written(
    request_id: str, explanation: Explanation, reason: Reason, tiers: dict[str, int], divergence: Divergence | None
) -> CacheReport:
    report: CacheReport = {
        "request_id": request_id,
        "prompt_tokens": explanation.prompt_tokens,
        "reused_tokens": explanation.reused_tokens,
        "reused_from": tiers,
        "computed_tokens": explanation.computed_tokens,
        "reason": reason.value,
        "first_divergence": divergence,
    }
    if reason is Reason.EVICTED:
        age = explanation.evicted_age
        report["evicted_seconds_ago"] = None if age is None else round(age, 3)
    return report
