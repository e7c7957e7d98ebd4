"""The metrics of vLLM's V1 engine under its own names, labels and buckets, so that existing dashboards work.

Only what exists here is there: no LoRA, no multi-modal cache, no external tier, no swapping.
`gpu_cache_usage_perc`, `gpu_prefix_cache_*` and `time_per_output_token_seconds` are names that vLLM has given up and
that old boards still ask for.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from kvtrove.engine_stats import EngineStats
from kvtrove.server.metrics_facts import Facts, Growth, Timing

ENGINE = "0"  # one engine, the first
_TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
TTFT_BUCKETS = (*_TTFT, 160.0, 640.0, 2560.0)
TOKEN_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
LATENCY_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0),
    *(40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
ITERATION_BUCKETS = (1, *(2**i for i in range(3, 15)))
N_BUCKETS = (1, 2, 5, 10, 20)

_GAUGES = {
    "num_requests_running": "Sequences that run.",
    "num_requests_waiting": "Sequences that wait.",
    "kv_cache_usage_perc": "Share of the KV blocks that running sequences hold, 0 to 1.",
    "gpu_cache_usage_perc": "Old name of kv_cache_usage_perc.",
}
_COUNTERS = {
    "prefix_cache_queries": "Prompt tokens looked up in the prefix cache.",
    "prefix_cache_hits": "Prompt tokens found in the prefix cache.",
    "gpu_prefix_cache_queries": "Old name of prefix_cache_queries.",
    "gpu_prefix_cache_hits": "Old name of prefix_cache_hits.",
    "prompt_tokens": "Tokens of the prompts that have got their first token.",
    "prompt_tokens_cached": "Prompt tokens that were reused.",
    "generation_tokens": "Tokens drawn.",
    "num_preemptions": "Sequences that lost their blocks.",
    "spec_decode_num_drafts": "Drafts of one or more tokens.",
    "spec_decode_num_draft_tokens": "Tokens drafted.",
    "spec_decode_num_accepted_tokens": "Drafted tokens that were right.",
}
_HISTOGRAMS: dict[str, tuple[Sequence[float], str]] = {
    "time_to_first_token_seconds": (TTFT_BUCKETS, "Arrival to first token."),
    "inter_token_latency_seconds": (TOKEN_BUCKETS, "Every gap between two tokens."),
    "time_per_output_token_seconds": (TOKEN_BUCKETS, "Old name of inter_token_latency_seconds."),
    "request_time_per_output_token_seconds": (TOKEN_BUCKETS, "Mean gap between the tokens of a request."),
    "e2e_request_latency_seconds": (LATENCY_BUCKETS, "Arrival to last token."),
    "request_queue_time_seconds": (LATENCY_BUCKETS, "Time in the queue."),
    "request_prefill_time_seconds": (LATENCY_BUCKETS, "First scheduled to first token."),
    "request_decode_time_seconds": (LATENCY_BUCKETS, "First token to last token."),
    "request_inference_time_seconds": (LATENCY_BUCKETS, "First scheduled to last token."),
    "iteration_tokens_total": (ITERATION_BUCKETS, "Tokens of the prompts that a step completed and tokens it drew."),
    "request_params_n": (N_BUCKETS, "The n parameter."),
}
_LENGTHS = {
    "request_prompt_tokens": "Tokens of a prompt.",
    "request_generation_tokens": "Tokens of an output.",
    "request_max_num_generation_tokens": "Tokens of the longest output of a request.",
    "request_params_max_tokens": "The max_tokens parameter.",
    "request_prefill_kv_computed_tokens": "Prompt tokens of a request that were computed.",
}


class VllmMetrics:
    """`vllm:*` in `registry`, labelled with the model's name and the engine's index."""

    def __init__(self, registry: CollectorRegistry, facts: Facts) -> None:
        self._labels = (facts.model_name, ENGINE)
        names = ("model_name", "engine")
        lengths = one_two_five(facts.max_model_len)
        tables = _HISTOGRAMS | {name: (lengths, text) for name, text in _LENGTHS.items()}
        self._gauges = {n: Gauge(f"vllm:{n}", text, names, registry=registry) for n, text in _GAUGES.items()}
        self._counters = {n: Counter(f"vllm:{n}", text, names, registry=registry) for n, text in _COUNTERS.items()}
        self._histograms = {
            n: Histogram(f"vllm:{n}", text, names, buckets=buckets, registry=registry)
            for n, (buckets, text) in tables.items()
        }
        self._per_pos = Counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos", "Drafted tokens that were right, by place in the draft.",
            (*names, "position"), registry=registry,
        )  # fmt: skip
        reason, source = (*names, "reason"), (*names, "source")
        self._waiting = Gauge(
            "vllm:num_requests_waiting_by_reason", "Sequences that wait for room.", reason, registry=registry
        )
        self._sources = Counter(
            "vllm:prompt_tokens_by_source", "Prompt tokens by where their keys and values came from.", source,
            registry=registry,
        )  # fmt: skip
        self._success = Counter(
            "vllm:request_success", "Outputs that ended, by how.", (*names, "finished_reason"), registry=registry
        )
        for metric in (*self._gauges.values(), *self._counters.values(), *self._histograms.values()):
            metric.labels(*self._labels)
        for word in ("stop", "length", "abort", "error"):
            self._success.labels(*self._labels, word)
        self._tell_config(registry, facts)

    def _tell_config(self, registry: CollectorRegistry, facts: Facts) -> None:
        labels = {
            "engine": ENGINE,
            "block_size": str(facts.block_size),
            "cache_dtype": facts.cache_dtype,
            "enable_prefix_caching": str(facts.enable_prefix_caching),
            "num_gpu_blocks": str(facts.num_blocks),
        }
        info = Gauge("vllm:cache_config_info", "The cache, in labels.", tuple(labels), registry=registry)
        info.labels(**labels).set(1)

    def on_stats(self, stats: EngineStats, grown: Growth) -> None:
        self._set("num_requests_running", stats.num_running)
        self._set("num_requests_waiting", stats.num_waiting)
        self._waiting.labels(*self._labels, "capacity").set(stats.num_waiting)
        for name in ("kv_cache_usage_perc", "gpu_cache_usage_perc"):
            self._set(name, stats.kv.usage)
        for prefix in ("", "gpu_"):
            self._add(f"{prefix}prefix_cache_queries", grown.queries)
            self._add(f"{prefix}prefix_cache_hits", grown.hits)
        self._add("prompt_tokens", grown.prompt_tokens)
        self._add("prompt_tokens_cached", grown.hits)
        self._sources.labels(*self._labels, "local_cache_hit").inc(grown.hits)
        self._sources.labels(*self._labels, "local_compute").inc(grown.queries - grown.hits)
        self._add("generation_tokens", grown.generation_tokens)
        self._add("num_preemptions", grown.preemptions)
        self._add("spec_decode_num_drafts", grown.drafts)
        self._add("spec_decode_num_draft_tokens", grown.draft_tokens)
        self._add("spec_decode_num_accepted_tokens", grown.accepted_tokens)
        for place, count in enumerate(grown.accepted_per_pos):
            self._per_pos.labels(*self._labels, str(place)).inc(count)

    def on_step(self, num_tokens: int) -> None:
        self._observe("iteration_tokens_total", num_tokens)

    def on_end(self, finish_reasons: Sequence[str]) -> None:
        for word in finish_reasons:
            self._success.labels(*self._labels, word).inc()

    def on_timing(self, timing: Timing) -> None:
        """A prompt whose outputs have all ended by themselves."""
        self._observe("time_to_first_token_seconds", timing.first_token)
        for gap in timing.gaps:
            self._observe("inter_token_latency_seconds", gap)
            self._observe("time_per_output_token_seconds", gap)
        self._observe("request_time_per_output_token_seconds", timing.mean_gap)
        self._observe("e2e_request_latency_seconds", timing.whole)
        self._observe("request_queue_time_seconds", timing.queue)
        self._observe("request_prefill_time_seconds", timing.prefill)
        self._observe("request_decode_time_seconds", timing.decode)
        self._observe("request_inference_time_seconds", timing.prefill + timing.decode)
        self._observe("request_prompt_tokens", timing.prompt_tokens)
        self._observe("request_prefill_kv_computed_tokens", timing.prompt_tokens - timing.cached_tokens)
        for length in timing.output_lengths:
            self._observe("request_generation_tokens", length)
        self._observe("request_max_num_generation_tokens", max(timing.output_lengths, default=0))
        self._observe("request_params_n", timing.n)
        if timing.max_tokens is not None:
            self._observe("request_params_max_tokens", timing.max_tokens)

    def _set(self, name: str, value: float) -> None:
        self._gauges[name].labels(*self._labels).set(value)

    def _add(self, name: str, value: float) -> None:
        self._counters[name].labels(*self._labels).inc(value)

    def _observe(self, name: str, value: float) -> None:
        self._histograms[name].labels(*self._labels).observe(value)


def one_two_five(most: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... up to `most`."""
    return [value for e in range(len(str(most))) for m in (1, 2, 5) if (value := m * 10**e) <= most]
