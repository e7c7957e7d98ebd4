"""Whole load tests in virtual time: known servers, so known figures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvtrove.bench.benchmark import Result, Settings, benchmark
from kvtrove.bench.record import Record
from kvtrove.bench.settings import Load, Slo, Span, Target, Workload
from kvtrove.config import ConfigError
from tests.unit.bench.fake_openai import Behaviour, fake_server
from tests.unit.bench.virtual_time import StreamingASGITransport, run

TARGET = Target("http://127.0.0.1:8000")
SMALL = Workload(input_tokens=Span(20, 20), output_tokens=Span(5, 5))


class Silent:
    """Nobody looks on; it counts."""

    def __init__(self) -> None:
        self.totals: list[int | None] = []
        self.running = self.most = 0

    def begin(self, load: Load, total: int | None) -> None:
        self.totals.append(total)

    def started(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)

    def finished(self, record: Record) -> None:
        self.running -= 1


def measure(
    behaviour: Behaviour, load: Load, workload: Workload = SMALL, audience: Silent | None = None, **more: Any
) -> Result:
    settings = Settings(more.pop("target", TARGET), load, workload, **more)
    transport = StreamingASGITransport(fake_server(behaviour))
    return run(benchmark(settings, audience or Silent(), transport))


def value(result: Result, name: str) -> float:
    found = result.runs[-1].summary.value(name)
    assert found is not None, name
    return found


# ---- loads ----


def test_constant_arrivals_give_exact_figures() -> None:
    """10 requests, one every 0.5 s; the first token after 0.2 s and four more 0.1 s apart: 4.5 + 0.6 s in all."""
    result = measure(Behaviour(ttft=0.2, gap=0.1), Load(rate=2, arrivals="constant", requests=10))
    [done] = result.runs
    assert [r.arrival for r in done.records] == pytest.approx([0.5 * n for n in range(10)])
    for statistic in ("mean", "p50", "p99", "max"):
        assert value(result, f"ttft_{statistic}") == pytest.approx(0.2)
        assert value(result, f"tpot_{statistic}") == pytest.approx(0.1)
        assert value(result, f"itl_{statistic}") == pytest.approx(0.1)
        assert value(result, f"e2e_{statistic}") == pytest.approx(0.6)
    assert done.summary.seconds == pytest.approx(5.1)
    assert value(result, "request_rate") == pytest.approx(10 / 5.1)
    assert value(result, "output_rate") == pytest.approx(50 / 5.1)
    assert value(result, "lag_max") == pytest.approx(0)


def test_an_open_loop_does_not_wait_for_answers() -> None:
    audience = Silent()
    result = measure(Behaviour(ttft=100), Load(rate=10, arrivals="constant", requests=30), audience=audience)
    assert audience.most == 30
    assert value(result, "ttft_max") == pytest.approx(100)


def test_a_closed_loop_keeps_its_concurrency() -> None:
    """12 requests of 0.6 s, 3 at a time: four rounds."""
    audience = Silent()
    result = measure(Behaviour(ttft=0.2, gap=0.1), Load(concurrency=3, requests=12), audience=audience)
    assert audience.most == 3
    assert result.runs[0].summary.seconds == pytest.approx(4 * 0.6)
    assert value(result, "request_rate") == pytest.approx(12 / 2.4)


def test_without_rate_and_concurrency_requests_come_one_by_one() -> None:
    audience = Silent()
    result = measure(Behaviour(ttft=0.1), Load(requests=5), audience=audience)
    assert (audience.most, result.runs[0].summary.counts.completed) == (1, 5)


@pytest.mark.parametrize(
    ("load", "requests"),
    [
        (Load(rate=4, arrivals="constant", duration=2.0), 8),
        (Load(concurrency=2, duration=2.0), 8),
        (Load(concurrency=4), 100),
    ],
)
def test_a_duration_ends_the_arrivals_and_without_one_there_is_a_default(load: Load, requests: int) -> None:
    """In the closed loop a request takes 0.5 s: two workers begin four each within 2 s."""
    audience = Silent()
    result = measure(Behaviour(ttft=0.5), load, audience=audience)
    assert result.runs[0].summary.counts.completed == requests
    assert audience.totals == [None if load.duration else requests]


def test_a_seed_repeats_everything_and_another_seed_nothing() -> None:
    workload = replace(SMALL, input_tokens=Span(10, 60))

    def asked(seed: int) -> tuple[list[str], list[float]]:
        behaviour = Behaviour()
        result = measure(behaviour, Load(rate=5, requests=8, seed=seed), workload)
        return [r["said"] for r in behaviour.requests[2:]], [r.arrival for r in result.runs[0].records]

    assert asked(1) == asked(1)
    texts, times = asked(1)
    other_texts, other_times = asked(2)
    assert not set(texts) & set(other_texts)
    assert times[1:] != other_times[1:]


def test_warmup_is_sent_but_not_measured() -> None:
    behaviour = Behaviour(delay=lambda prompt: 9.0 if len(behaviour.requests) <= 2 + 3 else 0.0)
    result = measure(behaviour, Load(concurrency=1, requests=10, warmup=3))
    assert len(behaviour.requests) == 2 + 10  # two of the probe
    assert result.runs[0].summary.counts.sent == 7
    assert value(result, "ttft_max") == pytest.approx(0)


# ---- workloads ----


def test_prompts_have_the_length_that_was_asked_for() -> None:
    """The probe finds 1.25 tokens per word and 9 beside the text: all in all the prompt has what was asked for."""
    workload = replace(SMALL, input_tokens=Span(400, 400), output_tokens=Span(6, 6))
    result = measure(Behaviour(tokens_per_word=1.25, overhead=9), Load(requests=5), workload)
    assert {r.output_tokens for r in result.runs[0].records} == {6}
    for record in result.runs[0].records:
        assert record.prompt_tokens == pytest.approx(400, abs=1)


def test_a_shared_prefix_is_found_in_the_cache() -> None:
    """160 shared words of 180 from the second request on: its ten blocks of 16 words."""
    workload = replace(SMALL, prefix_tokens=160)
    result = measure(Behaviour(caches=True), Load(requests=11), workload)
    assert [r.cached_tokens for r in result.runs[0].records] == [0] + [160] * 10
    assert value(result, "cached_share") == pytest.approx(10 * 160 / (11 * 180))


def test_several_prefixes_take_turns() -> None:
    workload = replace(SMALL, prefix_tokens=160, prefixes=3)
    result = measure(Behaviour(caches=True), Load(requests=9), workload)
    assert [r.cached_tokens for r in result.runs[0].records] == [0] * 3 + [160] * 6


def test_random_text_shares_nothing() -> None:
    result = measure(Behaviour(caches=True), Load(requests=50), replace(SMALL, input_tokens=Span(64, 64)))
    assert value(result, "cached_share") == 0


def test_turns_repeat_the_conversation_and_wait_for_it() -> None:
    """Two turns 3 s after the answer before; each prompt is the last one, its answer, and 20 new words."""
    workload = replace(SMALL, turns=3, think_time=3.0)
    behaviour = Behaviour(ttft=0.5, caches=True)
    result = measure(behaviour, Load(rate=1, arrivals="constant", requests=2), workload)
    records = sorted(result.runs[0].records, key=lambda r: (r.conversation, r.turn))
    assert [r.arrival for r in records] == pytest.approx([0, 3.5, 7.0, 1, 4.5, 8.0])
    assert [r.prompt_tokens for r in records[:3]] == [20, 45, 70]
    first, second, third = [
        r["messages"] for r in behaviour.requests[2:] if r["messages"][0] == _first_words(behaviour)
    ]
    assert second[: len(first)] == first
    assert third[: len(second)] == second
    assert [m["role"] for m in third] == ["user", "assistant", "user", "assistant", "user"]
    rows = result.runs[0].summary.turns
    assert [row.turn for row in rows] == [1, 2, 3]
    # in blocks of 16 words: one of 20, then two of 45, then four of 70
    assert [row.cached_share for row in rows] == pytest.approx([0, 16 / 45, 32 / 70])


def _first_words(behaviour: Behaviour) -> dict[str, str]:
    first: dict[str, str] = behaviour.requests[2]["messages"][0]
    return first


def test_a_conversation_ends_with_the_turn_that_fails() -> None:
    workload = replace(SMALL, turns=3)
    behaviour = Behaviour(ttft=0.1, fail=lambda prompt: (500, "oops") if "word" in prompt else None)
    result = measure(behaviour, Load(requests=4), workload, slo=Slo(ttft=1))
    counts = result.runs[0].summary.counts
    assert (counts.sent, counts.completed, counts.failed) == (8, 4, 4)
    assert (counts.sessions, counts.sessions_completed) == (4, 0)
    assert value(result, "session_goodput") == 0


def test_own_prompts_are_sent_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '"one"\n\n{"prompt": "two", "output_tokens": 2}\n{"turns": ["three", "four"]}\n'
        '{"messages": [{"role": "system", "content": "five"}, {"role": "user", "content": "six"}], "max_tokens": 3}\n'
    )
    behaviour, audience = Behaviour(), Silent()
    measure(behaviour, Load(concurrency=1), Workload(prompts=str(path)), audience)
    said = [r["said"] for r in behaviour.requests[2:]]
    assert said == ["one", "two", "three", "three\n" + "word " * 5 + "\nfour", "five\nsix"]
    assert [r.get("max_tokens") for r in behaviour.requests[2:]] == [None, 2, None, None, 3]
    assert audience.totals == [5]
    again = measure(Behaviour(), Load(requests=6), Workload(prompts=str(path), output_tokens=Span(2, 2)))
    assert again.runs[0].summary.counts.sent == 7  # four lines are five requests; then the first two lines once more


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "line 2 of .* is no JSON"),
        ("{}", "needs exactly one of: a string, 'prompt', 'messages', 'turns'"),
        ('{"prompt": "a", "turns": ["b"]}', "needs exactly one of"),
        ('{"turns": [1]}', "'turns' a list of texts"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "the last message must be the user's"),
        ('{"prompt": "a", "output_tokens": 0}', "'output_tokens' is 0; it must be a whole number of at least 1"),
    ],
)
def test_a_wrong_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'"fine"\n{line}\n')
    with pytest.raises(ConfigError, match=message):
        measure(Behaviour(), Load(), Workload(prompts=str(path)))


def test_a_file_of_prompts_that_is_empty_or_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*missing"):
        measure(Behaviour(), Load(), Workload(prompts=str(tmp_path / "missing")))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="is empty; write one"):
        measure(Behaviour(), Load(), Workload(prompts=str(tmp_path / "empty")))


# ---- goodput ----


def nth(behaviour: Behaviour) -> int:
    """Number of the request that is being answered, without the two of the probe."""
    return len(behaviour.requests) - 2


def test_goodput_is_what_was_inside_the_slo() -> None:
    """Every fourth of 40 requests starts 2 s late, every eighth is refused: 40 - 10 - 5 are inside."""
    behaviour = Behaviour(ttft=0.2, gap=0.02)
    behaviour.delay = lambda prompt: 2.0 if nth(behaviour) % 4 == 0 else 0.0
    behaviour.fail = lambda prompt: (503, "overloaded") if nth(behaviour) % 8 == 3 else None
    result = measure(behaviour, Load(rate=10, arrivals="constant", requests=40), slo=Slo(1.0, 0.05))
    summary = result.runs[0].summary
    counts = summary.counts
    assert (counts.within, counts.late, counts.failed, counts.abandoned) == (25, 10, 5, 0)
    assert value(result, "slo_share") == pytest.approx(25 / 40)
    assert value(result, "goodput") == pytest.approx(25 / summary.seconds)
    assert [(row.status, row.requests, row.message) for row in summary.errors] == [("http 503", 5, "overloaded")]


def test_abandoned_requests_count_against_the_share() -> None:
    behaviour = Behaviour(ttft=0.1)
    behaviour.delay = lambda prompt: 60.0 if nth(behaviour) > 8 else 0.0
    result = measure(behaviour, Load(concurrency=1, requests=10), target=replace(TARGET, timeout=5.0), slo=Slo(ttft=1))
    counts = result.runs[0].summary.counts
    assert (counts.completed, counts.abandoned, counts.late) == (8, 2, 0)
    assert value(result, "slo_share") == pytest.approx(0.8)


def one_at_a_time(seconds: float) -> Callable[[str], float]:
    """A server with one slot: a request waits until those before it are done (a queue with deterministic service)."""
    free = [0.0]

    def delay(prompt: str) -> float:
        now = asyncio.get_running_loop().time()
        free[0] = max(now, free[0]) + seconds
        return free[0] - now

    return delay


def sweep(rates: tuple[float, ...], service: float = 0.25, **more: Any) -> Result:
    return measure(
        Behaviour(delay=one_at_a_time(service)),
        Load(arrivals="constant", requests=40),
        rates=rates,
        slo=Slo(ttft=1.0),
        **more,
    )


def test_a_sweep_finds_the_highest_rate_inside_the_slo() -> None:
    """One slot of 0.25 s sustains 4 requests per second; at 8 the queue grows by one every second."""
    result = sweep((8, 1, 2, 4, 16))
    assert [run.load.rate for run in result.runs] == [1, 2, 4, 8]  # in order, and none after the first that misses
    assert [run.summary.value("slo_share") == 1 for run in result.runs] == [True, True, True, False]
    assert result.sustained is result.runs[2]


def test_each_rate_of_a_sweep_sends_text_of_its_own() -> None:
    """Otherwise the second rate would be measured on a warm cache."""
    behaviour = Behaviour(caches=True)
    result = measure(behaviour, Load(requests=10), replace(SMALL, input_tokens=Span(64, 64)), rates=(1, 2), slo=Slo(1))
    assert [run.summary.value("cached_share") for run in result.runs] == [0, 0]


def test_a_sweep_in_which_no_rate_is_low_enough() -> None:
    result = sweep((8, 16))
    assert result.sustained is None
    assert len(result.runs) == 1


# ---- Ctrl-C ----


def test_an_interrupted_run_keeps_what_was_measured() -> None:
    """Cancelled after 2.25 s: four of 0.5 s each are done, the fifth is under way."""

    async def main() -> Result:
        settings = Settings(TARGET, Load(concurrency=1, requests=100), SMALL, Slo(ttft=1.0))
        transport = StreamingASGITransport(fake_server(Behaviour(ttft=0.5)))
        task = asyncio.create_task(benchmark(settings, Silent(), transport))
        await asyncio.sleep(2 * 0.5 + 2.25)  # two requests of the probe come first
        task.cancel()
        return await task

    result = run(main())
    counts = result.runs[0].summary.counts
    assert result.interrupted
    assert (counts.completed, counts.unfinished, counts.failed) == (4, 1, 0)
    assert result.runs[0].summary.seconds == pytest.approx(2.25)
    assert value(result, "slo_share") == 1


# ---- settings that contradict each other ----


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Settings(TARGET, rates=(1, 2)), "give slo_ttft, slo_tpot or both"),
        (lambda: Settings(TARGET, Load(rate=1), slo=Slo(1), rates=(1, 2)), "takes the place of rate and concurrency"),
        (lambda: Settings(TARGET, slo=Slo(1), rates=(0, 2)), "rates: 0 must be larger than zero"),
        (lambda: Load(rate=1, concurrency=1), "exclude each other"),
        (lambda: Load(rate=0), "rate: 0 must be larger than zero"),
        (lambda: Load(arrivals="often"), "not one of poisson, constant, burst"),
        (lambda: Load(requests=5, warmup=5), "give requests 10"),
        (lambda: Load(warmup=-1), "must not be negative"),
        (lambda: Load(seed=-1), "must not be negative"),
        (lambda: Target("127.0.0.1:8000"), "write for example http://127.0.0.1:8000"),
        (lambda: Target("http://me:secret@host"), "give --api-key instead"),
        (lambda: Target("http://host", endpoint="chats"), "not one of chat, completions"),
        (lambda: Workload(prompts="a", trace="b"), "give one of them"),
        (lambda: Workload(prompts="a", turns=2), "prompts brings its own"),
        (lambda: Workload(trace="a", prefix_tokens=2), "trace brings its own"),
        (lambda: Workload(turns=0), "turns: 0 must be larger than zero"),
        (lambda: Workload(think_time=-1), "must not be negative"),
        (lambda: Slo(share=1.5), "at most 1, such as 0.9"),
        (lambda: Slo(ttft=0), "ttft: 0 must be larger than zero"),
        (lambda: Span.parse("9:5", "input_tokens"), "upside down; write 5:9"),
        (lambda: Span.parse("1:2:3", "input_tokens"), "a range such as 256:1024"),
    ],
)
def test_settings_say_what_would_work(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("url", "api"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("https://h/openai/v1/", "https://h/openai/v1"),
    ],
)
def test_the_api_is_found_from_the_root(url: str, api: str) -> None:
    assert Target(url).url == api
