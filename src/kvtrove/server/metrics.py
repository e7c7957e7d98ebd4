"""GET /metrics: counts and times for Prometheus, under our own names and under vLLM's."""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from kvtrove.engine_stats import EngineStats
from kvtrove.kv.reasons import Reason
from kvtrove.server.engine_thread import Step
from kvtrove.server.metrics_facts import Facts, Growth, Timing
from kvtrove.server.metrics_tiers import TierMetrics
from kvtrove.server.metrics_vllm import LATENCY_BUCKETS, TOKEN_BUCKETS, TTFT_BUCKETS, VllmMetrics
from kvtrove.server.observer import Departure, Observer
from kvtrove.server.reports import CacheReport
from kvtrove.server.routes.common import ServiceOf, errors

STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
NEVER_HERE = (Reason.OTHER_TENANT, Reason.OTHER_MODEL_OR_CACHE_SPEC)  # reasons that the server never gives
ABORTS = ("client_gone", "client_stalled", "request_timeout")


class Metrics(Observer):
    """Counts in a registry of its own. No label says who asked or what: every tenant may read them all."""

    def __init__(self, facts: Facts, *, vllm_names: bool = True) -> None:
        self.registry = CollectorRegistry()
        self._own = OwnMetrics(self.registry, facts)
        self._vllm = VllmMetrics(self.registry, facts) if vllm_names else None
        self._last: EngineStats | None = None
        ProcessCollector(registry=self.registry)

    def refresh(self, stats: EngineStats) -> Growth:
        """Take over the engine's totals; returns how they grew."""
        grown = Growth.between(self._last, stats)
        self._last = stats
        self._own.on_stats(stats, grown)
        if self._vllm is not None:
            self._vllm.on_stats(stats, grown)
        return grown

    def on_step(self, step: Step) -> None:
        grown = self.refresh(step.stats)
        self._own.step_seconds.observe(step.seconds)
        if self._vllm is not None:
            self._vllm.on_step(grown.prompt_tokens + grown.generation_tokens)

    def on_departure(self, departure: Departure) -> None:
        arrival = departure.arrival
        self._own.requests.labels(arrival.route, departure.error or "ok").inc()
        for result in departure.results:
            timing = Timing.of(arrival.time, result)
            if timing is not None:
                self._own.on_timing(timing)
            if self._vllm is None:
                continue
            unfinished = "abort" if departure.error in ABORTS else "error"
            self._vllm.on_end(result.finish_reasons or [unfinished] * result.params.n)
            if timing is not None:
                self._vllm.on_timing(timing)

    def on_error(self, route: str, status: int, code: str) -> None:
        self._own.errors.labels(route, str(status), code).inc()

    def on_response_cache(self, found: bool) -> None:
        self._own.kept_answers.labels("hit" if found else "miss").inc()

    def on_report(self, report: CacheReport) -> None:
        """A prompt's cache report."""
        self._own.outcomes.labels(report["reason"]).inc()
        self._own.computed.labels(report["reason"]).inc(report["computed_tokens"])


class OwnMetrics:
    """`kvtrove_*` in `registry`."""

    def __init__(self, registry: CollectorRegistry, facts: Facts) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"kvtrove_{name}", text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"kvtrove_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"kvtrove_{name}", text, buckets=buckets, registry=registry)

        self.running = gauge("sequences_running", "Sequences that run.")
        self.waiting = gauge("sequences_waiting", "Sequences that wait.")
        self.blocks = gauge("kv_blocks", "Blocks of the KV cache, by state.", "state")
        self.eviction_age = gauge("kv_eviction_age_seconds", "How long the last evicted block had not been used.")
        self.soft_pinned = gauge("kv_soft_pinned_blocks", "Cached blocks that leave last, for a while.")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of admitted sequences, by source.", "source")
        self.generated = counter("generation_tokens", "Tokens drawn.")
        self.preemptions = counter("preemptions", "Sequences that lost their blocks.")
        self.evictions = counter("kv_evictions", "Cached blocks given up for new ones.")
        self.duplicates = counter("kv_duplicates", "Blocks computed beside an equal one.")
        self.mismatches = counter("kv_mismatches", "Blocks of other tokens under the right key; should stay 0.")
        self.degraded = gauge("engine_degraded", "1 while a failed step is being repeated, else 0.")
        self.faults = counter("engine_faults", "Steps of the engine that failed.")
        self.failed = counter("engine_failed_requests", "Requests that were ended because a step failed.")
        self.restarts = counter("engine_restarts", "Restarts of the engine within the process.")
        self.outcomes = counter("cache_reports", "Prompts by the reason why no more of them was reused.", "reason")
        self.computed = counter("cache_computed_tokens", "Prompt tokens computed, by that reason.", "reason")
        self.requests = counter("requests", "Requests that the engine accepted and that ended.", "route", "outcome")
        self.errors = counter("http_errors", "Answers with an error status.", "route", "status", "code")
        self.kept_answers = counter("response_cache_lookups", "Lookups of whole answers, by outcome.", "outcome")
        for outcome in ("hit", "miss"):
            self.kept_answers.labels(outcome)  # a counter that has not counted yet is shown, too
        self.step_seconds = histogram("step_seconds", "Time of a step of the engine.", STEP_BUCKETS)
        self.first_token = histogram("time_to_first_token_seconds", "Arrival to first token.", TTFT_BUCKETS)
        self.gap = histogram("inter_token_seconds", "Every gap between two tokens.", TOKEN_BUCKETS)
        self.whole = histogram("request_seconds", "Arrival to last token.", LATENCY_BUCKETS)
        self.tiers = TierMetrics(registry)
        memory = gauge("memory_bytes", "Bytes, by what they are for.", "kind")
        memory.labels("weights").set(facts.weight_bytes)
        memory.labels("kv_cache").set(facts.num_blocks * facts.block_bytes)
        gauge("kv_block_bytes", "Bytes of a block.").set(facts.block_bytes)
        for reason in Reason:
            if reason not in NEVER_HERE:
                self.outcomes.labels(reason.value)
                self.computed.labels(reason.value)

    def on_stats(self, stats: EngineStats, grown: Growth) -> None:
        self.tiers.figures, self.tiers.checkpoints = stats.tiers, stats.checkpoints
        self.running.set(stats.num_running)
        self.waiting.set(stats.num_waiting)
        for state in ("used", "cached", "free"):
            self.blocks.labels(state).set(getattr(stats.kv, state))
        self.eviction_age.set(stats.kv.eviction_age or 0.0)
        self.soft_pinned.set(stats.kv.soft_pinned)
        self.prompt_tokens.labels("memory").inc(grown.hits)
        self.prompt_tokens.labels("computed").inc(grown.queries - grown.hits)
        self.generated.inc(grown.generation_tokens)
        self.preemptions.inc(grown.preemptions)
        self.evictions.inc(grown.evictions)
        self.duplicates.inc(grown.duplicates)
        self.mismatches.inc(grown.mismatches)
        self.degraded.set(stats.faults.degraded)
        self.faults.inc(grown.faults)
        self.failed.inc(grown.failed)
        self.restarts.inc(grown.restarts)

    def on_timing(self, timing: Timing) -> None:
        self.first_token.observe(timing.first_token)
        self.whole.observe(timing.whole)
        for gap in timing.gaps:
            self.gap.observe(gap)


def metrics_router(metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics", response_class=Response, responses=errors(401, 403))
    async def scrape(service: ServiceOf) -> Response:
        """All metrics in Prometheus's text format."""
        metrics.refresh(service.engine.stats)
        return Response(await service.in_pool(generate_latest, metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router
