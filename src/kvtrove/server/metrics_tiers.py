"""What outlives the pool: `kvtrove_tier_*` of the tiers below it, and of sequences that are kept as files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from kvtrove.kv.tiers.store import TierFigures


class TierMetrics(Collector):
    """Reads `figures` and `checkpoints`, those of the engine's last step, when it is scraped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.figures: Sequence[TierFigures] = ()
        self.checkpoints: Mapping[str, int] = {}
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        events = CounterMetricFamily("kvtrove_checkpoints", "Sequences kept as files, by event.", labels=["event"])
        for event in ("written", "failed", "restored", "continued"):
            events.add_metric([event], self.checkpoints.get(event, 0))
        continued = CounterMetricFamily("kvtrove_continued_tokens", "Tokens of answers that were not drawn again.")
        continued.add_metric([], self.checkpoints.get("continued tokens", 0))
        yield from (events, continued)
        if not self.figures:
            return
        size = GaugeMetricFamily("kvtrove_tier_bytes", "Bytes that a tier holds.", labels=["tier"])
        budget = GaugeMetricFamily("kvtrove_tier_budget_bytes", "Bytes that a tier may take.", labels=["tier"])
        latency = GaugeMetricFamily("kvtrove_tier_read_seconds", "Recent reads.", labels=["tier", "quantile"])
        rows = CounterMetricFamily("kvtrove_tier_rows", "Rows, by what became of them.", labels=["tier", "outcome"])
        moved = CounterMetricFamily("kvtrove_tier_moved_bytes", "Bytes of rows.", labels=["tier", "direction"])
        errors = CounterMetricFamily("kvtrove_tier_errors", "Faults of a tier.", labels=["tier", "reason"])
        for tier in self.figures:
            size.add_metric([tier.name], tier.nbytes)
            budget.add_metric([tier.name], tier.budget)
            latency.add_metric([tier.name, "0.5"], tier.latency_p50)
            latency.add_metric([tier.name, "0.99"], tier.latency_p99)
            for outcome in ("hits", "misses", "stored", "declined", "evicted"):
                rows.add_metric([tier.name, outcome], getattr(tier, outcome))
            moved.add_metric([tier.name, "read"], tier.bytes_read)
            moved.add_metric([tier.name, "written"], tier.bytes_written)
            for reason, count in tier.errors.items():
                errors.add_metric([tier.name, reason], count)
        yield from (size, budget, latency, rows, moved, errors)
