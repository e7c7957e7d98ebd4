"""/metrics: what is counted, exactly as vLLM counts it, and a dashboard that asks for nothing that is not there."""

from __future__ import annotations

import json
import re
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from opentelemetry.trace import NonRecordingSpan, NoOpTracer, SpanContext, Status
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kvtrove.engine_stats import EngineStats
from kvtrove.kv.stats import KVStats
from kvtrove.kv.tiers.store import TierFigures
from kvtrove.request import RequestMetrics, SamplingParams
from kvtrove.scheduler.drafts import DraftStats
from kvtrove.server.auth import Tenant
from kvtrove.server.engine_thread import EngineRequest, Step
from kvtrove.server.metrics import Metrics
from kvtrove.server.metrics_facts import Facts
from kvtrove.server.metrics_tiers import TierMetrics
from kvtrove.server.metrics_traces import Traces
from kvtrove.server.metrics_vllm import one_two_five
from kvtrove.server.observer import Arrival, Departure, PromptResult
from tests.server.conftest import ADMIN, ALICE, NUM_BLOCKS
from tests.server.live import LiveServer

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
BOARD = Path(__file__).parents[2] / "dashboards" / "grafana.json"
PROMPT = "one block of tokens is not enough for a hit, so this prompt is a little longer than a block of them is " * 2
ADDED_BY_PROMETHEUS = {"model", "instance", "job"}
"""`model` is added by a server of several models (kvtrove.fleet.metrics); `=~".*"` matches where it is not."""
STATS = EngineStats(0, 0, 0, KVStats(100, 100, 0, 0, 0, 0, 0, 0, 0, None))
FACTS = Facts("m", 4096, 32, 100, 1024, 2048, "auto", True)
LABELS = {"model_name": "m", "engine": "0"}

Series = dict[str, list[tuple[dict[str, str], float]]]


def parse(text: str) -> Series:
    """Name of a series -> its labels and values."""
    found: Series = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name].append((dict(sample.labels), sample.value))
    return found


def scrape(server: LiveServer) -> Series:
    server.wait_idle(ALICE)
    with server.client(ALICE) as client:
        answer = client.get("/metrics").raise_for_status()
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return parse(answer.text)


def value(series: Series, name: str, **labels: str) -> float:
    """Sum of the series that have these labels; one that has never been touched is 0."""
    return sum(v for found, v in series[name] if labels.items() <= found.items())


# ---- on a real server ----


@pytest.fixture(scope="module")
def before_and_after(server: LiveServer) -> tuple[Series, Series]:
    """Around two equal completions of 5 tokens on an empty cache, a refused request and a streamed chat."""
    server.wait_idle(ALICE)
    with server.client(ADMIN) as admin:
        admin.post("/v1/cache/clear").raise_for_status()
    before = scrape(server)
    with server.client(ALICE) as client:
        body = {"model": "demo", "prompt": PROMPT, "max_tokens": 5, "ignore_eos": True, "cache_salt": "metrics"}
        for _ in range(2):
            client.post("/v1/completions", json=body).raise_for_status()
        assert client.post("/v1/completions", json=body | {"n": 0}).status_code == 400
        talk = {"model": "demo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "stream": True}
        client.post("/v1/chat/completions", json=talk | {"ignore_eos": True}).raise_for_status()
    return before, scrape(server)


def test_totals_are_those_of_the_requests(before_and_after: tuple[Series, Series]) -> None:
    before, after = before_and_after

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("vllm:generation_tokens_total") == grown("kvtrove_generation_tokens_total") == 14
    assert grown("vllm:request_success_total", finished_reason="length") == 3
    queries, hits = grown("vllm:prefix_cache_queries_total"), grown("vllm:prefix_cache_hits_total")
    assert queries == grown("vllm:prompt_tokens_total") == grown("kvtrove_prompt_tokens_total")
    assert hits == grown("kvtrove_prompt_tokens_total", source="memory") > 0
    assert hits == grown("vllm:prompt_tokens_cached_total")
    assert grown("vllm:prompt_tokens_by_source_total", source="local_compute") == queries - hits
    assert grown("vllm:time_to_first_token_seconds_count") == 3
    assert grown("vllm:inter_token_latency_seconds_count") == 4 + 4 + 3, "one less than tokens, streamed or not"
    assert grown("vllm:request_prompt_tokens_sum") == queries
    assert grown("vllm:request_prefill_kv_computed_tokens_sum") == queries - hits
    assert grown("vllm:iteration_tokens_total_sum") == queries + 14
    assert grown("kvtrove_requests_total", route="/v1/completions", outcome="ok") == 2
    assert grown("kvtrove_http_errors_total", route="/v1/completions", status="400") == 1
    assert grown("kvtrove_cache_reports_total", reason="cold") >= 1
    assert grown("kvtrove_cache_reports_total") == 3
    assert grown("kvtrove_cache_computed_tokens_total") == queries - hits


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("vllm:gpu_cache_usage_perc", "vllm:kv_cache_usage_perc"),
        ("vllm:gpu_prefix_cache_queries_total", "vllm:prefix_cache_queries_total"),
        ("vllm:gpu_prefix_cache_hits_total", "vllm:prefix_cache_hits_total"),
        ("vllm:time_per_output_token_seconds_sum", "vllm:inter_token_latency_seconds_sum"),
    ],
)
def test_old_names_say_the_same(before_and_after: tuple[Series, Series], old: str, new: str) -> None:
    after = before_and_after[1]
    assert after[old] == after[new] != []


def test_gauges_are_those_of_an_idle_server(before_and_after: tuple[Series, Series]) -> None:
    after = before_and_after[1]
    assert value(after, "vllm:num_requests_running", model_name="demo", engine="0") == 0
    assert value(after, "vllm:kv_cache_usage_perc") == value(after, "kvtrove_kv_blocks", state="used") == 0
    assert value(after, "kvtrove_kv_blocks") == NUM_BLOCKS
    assert value(after, "kvtrove_kv_blocks", state="cached") > 0
    [(info, one)] = after["vllm:cache_config_info"]
    assert one == 1
    assert (info["num_gpu_blocks"], info["block_size"]) == (str(NUM_BLOCKS), "32")
    bytes_of_blocks = value(after, "kvtrove_kv_block_bytes") * NUM_BLOCKS
    assert value(after, "kvtrove_memory_bytes", kind="kv_cache") == bytes_of_blocks > 0
    assert value(after, "kvtrove_memory_bytes", kind="weights") > 0


def test_a_key_guards_them(server: LiveServer) -> None:
    assert httpx.get(f"{server.url}/metrics").status_code == 401


def test_no_label_tells_who_asked_or_what(before_and_after: tuple[Series, Series]) -> None:
    """Every tenant may read all of it."""
    ours = {n: s for n, s in before_and_after[1].items() if not n.startswith(("python_", "process_"))}
    labels = {name for series in ours.values() for found, _ in series for name in found}
    known = {
        "le",
        "reason",
        "source",
        "state",
        "kind",
        "route",
        "outcome",
        "status",
        "code",
        "finished_reason",
        "event",
    }
    config = {"block_size", "cache_dtype", "enable_prefix_caching", "num_gpu_blocks"}
    assert labels == known | config | {"model_name", "engine"}
    assert not [s for s in ours["kvtrove_cache_reports_total"] if s[0]["reason"].startswith("other_")]


def test_the_page_lists_them_all(before_and_after: tuple[Series, Series]) -> None:
    page = PAGE.read_text()
    names = {re.sub(r"_(sum|count|bucket|created)$", "", name) for name in before_and_after[1]}
    ours = {name for name in names if name.startswith("kvtrove_")}
    theirs = {name.removeprefix("vllm:").removesuffix("_total") for name in names if name.startswith("vllm:")}
    assert len(ours) > 15 < len(theirs)
    listed = set(re.findall(r"`(\w+)`", page))
    assert {n for n in ours if n not in listed and f"{n}_total" not in listed} == set()
    assert {n for n in theirs if n not in listed and f"{n}_total" not in listed} == set()
    promised = {n for n in listed if n.startswith("kvtrove_") and not n.startswith("kvtrove_tier_")}
    assert promised <= ours, "the page promises no others"


def test_tiers_are_counted_where_there_are_some() -> None:
    registry = CollectorRegistry()
    tiers = TierMetrics(registry)
    assert not [one for one in tiers.collect() if one.name.startswith("kvtrove_tier")]
    tiers.figures = (TierFigures("disk", nbytes=5, budget=9, hits=3, bytes_read=7, errors={"timeout": 2}),)
    text = generate_latest(registry).decode()
    assert 'kvtrove_tier_rows_total{outcome="hits",tier="disk"} 3.0' in text
    assert 'kvtrove_tier_errors_total{reason="timeout",tier="disk"} 2.0' in text
    told = set(re.findall(r"^(kvtrove_tier_\w+)", text, re.MULTILINE))
    assert told == set(re.findall(r"`(kvtrove_tier_\w+)`", PAGE.read_text()))


# ---- the dashboard ----

QUERY_WORDS = {"by", "on", "group_left", "sum", "max", "rate", "histogram_quantile", "label_values", "le"}


def queries() -> Iterator[tuple[str, str]]:
    board = json.loads(BOARD.read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


def metrics_in(expression: str) -> dict[str, set[str]]:
    """Metric -> labels that its selector names. Strings, ranges and groupings are no metrics."""
    bare = re.sub(r"\[[^\]]*\]", "", expression)
    found = re.findall(
        r"([a-zA-Z_:][\w:]*)\s*(?:\{([^}]*)\})?", re.sub(r"\b(?:by|on|group_left)\s*\([^)]*\)", "", bare)
    )
    labels = {name: set(re.findall(r"(\w+)\s*=~?\s*\"", selector)) for name, selector in found}
    return {n: names for n, names in labels.items() if n not in QUERY_WORDS | ADDED_BY_PROMETHEUS}


def test_the_reader_of_queries_sees_what_is_in_them() -> None:
    expression = 'sum by (le, x) (rate(a:b_total{instance=~"$i", source="m"}[5m])) / on (y) group_left () c_d{z="1"}'
    assert metrics_in(expression) == {"a:b_total": {"instance", "source"}, "c_d": {"z"}}


def tiers_with_news() -> Series:
    """What a server with a tier shows, which this one has not."""
    registry = CollectorRegistry()
    TierMetrics(registry).figures = (TierFigures("disk", errors={"timeout": 2}),)
    return {n: s for n, s in parse(generate_latest(registry).decode()).items() if n.startswith("kvtrove_tier")}


@pytest.mark.parametrize(("title", "expression"), list(queries()))
def test_every_query_of_the_board_resolves(
    before_and_after: tuple[Series, Series], title: str, expression: str
) -> None:
    after = before_and_after[1] | tiers_with_news()
    assert all(expression.count(a) == expression.count(b) for a, b in ("()", "{}", "[]")), "brackets do not match"
    used = metrics_in(expression)
    assert used, f"{title}: no metric in {expression}"
    for name, selected in used.items():
        assert after.get(name), f"{title}: /metrics has no {name}"
        there = set().union(*(labels for labels, _ in after[name])) | ADDED_BY_PROMETHEUS
        assert selected <= there, f"{title}: {name} has no label {selected - there}"
        for grouped in re.findall(r"\bby\s*\(([^)]*)\)", expression):
            wanted = {label.strip() for label in grouped.split(",")}
            everywhere = set().union(*(labels for n in used for labels, _ in after[n])) | ADDED_BY_PROMETHEUS
            assert wanted <= everywhere, f"{title}: no label {wanted - everywhere}"


def test_the_board_has_its_rows_and_no_panel_twice() -> None:
    panels = json.loads(BOARD.read_text())["panels"]
    rows = [p["title"] for p in panels if p["type"] == "row"]
    assert rows == ["Now", "Traffic", "Latency", "Cache", "Memory", "Tiers and checkpoints"]
    assert len({p["id"] for p in panels}) == len({p["title"] for p in panels}) == len(panels)
    places = [tuple(p["gridPos"].values()) for p in panels]
    assert len(set(places)) == len(places)


def test_the_board_is_one_that_grafana_draws() -> None:
    board = json.loads(BOARD.read_text())
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert all(
        variable.get("allValue") == ".*" for variable in board["templating"]["list"] if "query" in variable["type"]
    )
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, f"{panel['title']} lies over another panel"
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["type"] in ("timeseries", "stat")
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert set(re.findall(r"\$(?!__rate_interval)(\w+)", target["expr"])) <= variables
            for selector in re.findall(r"\{([^}]*)\}", target["expr"]):
                assert 'instance=~"$instance", model=~"$model"' in selector, f"{panel['title']} ignores a filter"


def test_grafana_and_prometheus_are_provisioned_with_what_the_compose_file_mounts() -> None:
    folder = BOARD.parents[1] / "packaging"
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    mounts = dict(mount.rsplit(":", 1)[0].split(":") for mount in services["grafana"]["volumes"])
    for source, target in mounts.items():
        assert (folder / source).is_file()
        kind = "/dashboards/" if "provisioning" not in target else "/etc/grafana/provisioning/"
        assert kind in target
    [datasource] = yaml.safe_load((folder / "grafana/datasource.yaml").read_text())["datasources"]
    assert datasource["type"] == "prometheus"
    assert datasource["url"] == "http://prometheus:9090"
    [provider] = yaml.safe_load((folder / "grafana/dashboards.yaml").read_text())["providers"]
    assert f"{provider['options']['path']}/kvtrove.json" in mounts.values()
    [scrape] = yaml.safe_load((folder / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    [[target]] = [config["targets"] for config in scrape["static_configs"]]
    name, port = target.split(":")
    assert services[name]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert scrape["authorization"]["credentials_file"] in services["prometheus"]["command"][0]


# ---- what exactly is counted ----


def arrival(request_id: str = "r", n: int = 1) -> Arrival:
    params = SamplingParams(n=n, max_tokens=8)
    return Arrival("h", 10.0, "/v1/completions", Tenant("t"), None, (EngineRequest(request_id, [1, 2], params),))


def ended(n: int = 1, reasons: tuple[str, ...] = ("stop",)) -> PromptResult:
    """Queued at 10.5, scheduled at 11, first token at 13, further ones at 13.25 and 14, over at 14.125."""
    times = RequestMetrics(10.5, 11.0, 13.0, 14.125, token_times=array("d", (13.0, 13.25, 14.0)))
    lengths = {i: [7] * (3 - i) for i in range(n)}
    return PromptResult(SamplingParams(n=n, max_tokens=8), 70, 64, 3, lengths, list(reasons), times)


def series_of(metrics: Metrics) -> Series:
    from prometheus_client import generate_latest

    return parse(generate_latest(metrics.registry).decode())


def test_times_are_measured_from_where_vllm_measures_them() -> None:
    metrics = Metrics(FACTS)
    metrics.on_departure(Departure(arrival(), 15.0, (ended(),)))
    found = series_of(metrics)
    sums = {
        "time_to_first_token_seconds": 3.0,  # from the arrival at the server
        "inter_token_latency_seconds": 1.0,
        "request_time_per_output_token_seconds": 0.5,
        "e2e_request_latency_seconds": 4.125,
        "request_queue_time_seconds": 0.5,  # in the engine's own queue
        "request_prefill_time_seconds": 2.0,
        "request_decode_time_seconds": 1.0,
        "request_inference_time_seconds": 3.0,
        "request_prompt_tokens": 70,
        "request_prefill_kv_computed_tokens": 6,
        "request_generation_tokens": 3,
        "request_max_num_generation_tokens": 3,
        "request_params_n": 1,
        "request_params_max_tokens": 8,
    }
    assert {name: value(found, f"vllm:{name}_sum", **LABELS) for name in sums} == sums
    counts = {name: value(found, f"vllm:{name}_count", **LABELS) for name in sums}
    assert counts == dict.fromkeys(sums, 1) | {"inter_token_latency_seconds": 2}
    assert value(found, "vllm:inter_token_latency_seconds_bucket", le="0.3", **LABELS) == 1


def test_every_output_is_counted_by_how_it_ended() -> None:
    metrics = Metrics(FACTS)
    metrics.on_departure(Departure(arrival(n=2), 15.0, (ended(2, ("stop", "length")),)))
    found = series_of(metrics)
    assert value(found, "vllm:request_success_total", finished_reason="stop") == 1
    assert value(found, "vllm:request_success_total", finished_reason="length") == 1
    assert value(found, "vllm:request_generation_tokens_sum") == 3 + 2
    assert value(found, "vllm:request_max_num_generation_tokens_sum") == 3
    assert value(found, "vllm:request_params_n_sum") == 2


@pytest.mark.parametrize(("error", "word"), [("client_gone", "abort"), ("engine_error", "error")])
def test_what_did_not_end_by_itself_leaves_no_times(error: str, word: str) -> None:
    metrics = Metrics(FACTS)
    metrics.on_departure(Departure(arrival(), 15.0, (ended(reasons=()),), error))
    found = series_of(metrics)
    assert value(found, "vllm:request_success_total", finished_reason=word) == 1
    assert value(found, "vllm:request_success_total") == 1
    assert value(found, "vllm:e2e_request_latency_seconds_count") == 0
    assert value(found, "kvtrove_requests_total", outcome=error) == 1


def test_totals_grow_by_what_the_engine_s_totals_grow() -> None:
    metrics = Metrics(FACTS)
    for prompt, drawn, queries, hits in ((10, 1, 10, 0), (10, 2, 30, 16), (30, 4, 30, 16)):
        kv = replace(STATS.kv, queries=queries, hits=hits, evictions=hits)
        stats = replace(STATS, kv=kv, num_prompt_tokens=prompt, num_generation_tokens=drawn, num_waiting=2)
        metrics.on_step(Step(0.0, 0.02, [], stats))
        metrics.refresh(stats)  # looking twice counts nothing twice
    found = series_of(metrics)
    assert value(found, "vllm:prompt_tokens_total") == 30
    assert value(found, "vllm:generation_tokens_total") == 4
    assert value(found, "kvtrove_kv_evictions_total") == 16
    assert value(found, "vllm:num_requests_waiting_by_reason", reason="capacity") == 2
    buckets = {le: value(found, "vllm:iteration_tokens_total_bucket", le=le) for le in ("1.0", "8.0", "16.0", "32.0")}
    assert buckets == {"1.0": 1, "8.0": 1, "16.0": 2, "32.0": 3}, "steps of 11, 1 and 22 tokens"


def test_vllm_s_names_can_be_left_out() -> None:
    metrics = Metrics(FACTS, vllm_names=False)
    metrics.on_step(Step(0.0, 0.02, [], STATS))
    metrics.on_departure(Departure(arrival(), 15.0, (ended(),)))
    found = series_of(metrics)
    assert not [name for name in found if name.startswith("vllm:")]
    assert value(found, "kvtrove_request_seconds_sum") == 4.125


VLLM_BUCKETS: dict[str, list[Any]] = {
    "time_to_first_token_seconds": [
        *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
        *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
    ],
    "inter_token_latency_seconds": [
        *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
    ],
    "e2e_request_latency_seconds": [
        *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
    ],
    "iteration_tokens_total": [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384],
    "request_params_n": [1, 2, 5, 10, 20],
    "request_prompt_tokens": [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000],
}


@pytest.mark.parametrize("name", VLLM_BUCKETS)
def test_buckets_are_vllm_s(name: str) -> None:
    found = series_of(Metrics(FACTS))[f"vllm:{name}_bucket"]
    assert [float(labels["le"]) for labels, _ in found] == [*VLLM_BUCKETS[name], float("inf")]


def test_lengths_go_up_to_the_context() -> None:
    assert one_two_five(100) == [1, 2, 5, 10, 20, 50, 100]
    assert one_two_five(199)[-1] == 100
    assert one_two_five(200)[-1] == 200


# ---- traces ----


@dataclass
class Recorded(NonRecordingSpan):
    """A span that keeps what it is told. Times in nanoseconds."""

    name: str
    start: int | None
    attributes: dict[str, Any] = field(default_factory=dict)
    events: dict[str, int | None] = field(default_factory=dict)
    status: str | None = None
    ended: int | None = None

    def __post_init__(self) -> None:
        super().__init__(SpanContext(1, 1, False))

    def is_recording(self) -> bool:
        return True

    def set_attributes(self, attributes: Any) -> None:
        self.attributes.update(attributes)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        self.events[name] = timestamp

    def set_status(self, status: Any, description: str | None = None) -> None:
        assert isinstance(status, Status)
        self.status = status.description

    def end(self, end_time: int | None = None) -> None:
        self.ended = end_time


class RecordingTracer(NoOpTracer):
    def __init__(self) -> None:
        self.spans: list[Recorded] = []

    def start_span(self, name: str, *args: Any, start_time: int | None = None, **settings: Any) -> Recorded:
        self.spans.append(Recorded(name, start_time))
        return self.spans[-1]


SECOND = 10**9


@pytest.mark.parametrize("error", [None, "request_timeout"])
def test_a_request_is_one_span_in_wall_clock_time(error: str | None) -> None:
    tracer = RecordingTracer()
    traces = Traces("m", tracer, wall=lambda: 1000 * SECOND, monotonic=lambda: 15.0)
    traces.on_departure(Departure(arrival(), 15.0, (ended(),), error))
    [span] = tracer.spans
    assert (span.name, span.start, span.ended) == ("text_completion m", 995 * SECOND, 1000 * SECOND)
    assert span.events == {"kvtrove.scheduled": 996 * SECOND, "kvtrove.first_token": 998 * SECOND}
    expected = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 70,
        "gen_ai.usage.cache_read.input_tokens": 64,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.request.max_tokens": 8,
        "kvtrove.request_id": "h",
    }
    assert expected.items() <= span.attributes.items()
    assert (span.status, span.attributes.get("error.type")) == (error, error)


def test_without_a_provider_nothing_is_recorded() -> None:
    Traces("m").on_departure(Departure(arrival(), 15.0, (ended(),)))


def test_drafts_are_counted_under_vllms_names() -> None:
    metrics = Metrics(FACTS)
    metrics.refresh(replace(STATS, drafts=DraftStats(2, 9, 5, [2, 2, 1])))
    metrics.refresh(replace(STATS, drafts=DraftStats(3, 12, 6, [3, 2, 1])))
    found = series_of(metrics)
    assert value(found, "vllm:spec_decode_num_drafts_total") == 3
    assert value(found, "vllm:spec_decode_num_draft_tokens_total") == 12
    assert value(found, "vllm:spec_decode_num_accepted_tokens_total") == 6
    per_pos = [value(found, "vllm:spec_decode_num_accepted_tokens_per_pos_total", position=str(n)) for n in range(3)]
    assert per_pos == [3, 2, 1]
