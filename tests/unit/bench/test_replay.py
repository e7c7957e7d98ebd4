"""Traces: their times and think times, and text that a prefix cache sees exactly as the recorded service's did."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtrove.bench.benchmark import Result
from kvtrove.bench.settings import Load, Workload
from kvtrove.bench.words import Words
from kvtrove.bench.workload import Blocks, Writer
from kvtrove.config import ConfigError
from tests.unit.bench.fake_openai import BLOCK, Behaviour
from tests.unit.bench.test_benchmark import measure

MOONCAKE = 512  # tokens per id


def mooncake(path: Path, rows: list[tuple[float, int, int, list[int]]]) -> str:
    """rows: (seconds, prompt tokens, answer tokens, ids)."""
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    lines = [dict(zip(names, (1000 * at, *rest), strict=True)) for at, *rest in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def replayed(trace: str, behaviour: Behaviour | None = None, load: Load | None = None, **more: Any) -> Result:
    return measure(behaviour or Behaviour(), load or Load(), Workload(trace=trace, **more))


def shared_tokens(one: tuple[int, list[int]], other: tuple[int, list[int]]) -> int:
    """How many leading tokens two prompts (length, ids) have in common, by their ids alone."""
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one[1], other[1], strict=False)))
    return min(same * MOONCAKE, one[0], other[0])


def random_prompts(random: Random, count: int) -> list[tuple[int, list[int]]]:
    """Prompts that branch off earlier ones at random blocks; new blocks get new ids. The last block may be partial."""
    prompts: list[tuple[int, list[int]]] = []
    fresh = iter(range(10**6))
    for _ in range(count):
        kept = random.choice(prompts)[1] if prompts else []
        ids = [*kept[: random.randint(0, len(kept))], *(next(fresh) for _ in range(random.randint(1, 2)))]
        prompts.append((len(ids) * MOONCAKE - random.choice([0, 100, 500]), ids))
    return prompts


def test_the_cache_finds_what_the_ids_promise(tmp_path: Path) -> None:
    """For each prompt: its longest common beginning with any earlier one, in the server's blocks of 16 words."""
    prompts = random_prompts(Random(3), 30)
    trace = mooncake(tmp_path / "t", [(n, length, 1, ids) for n, (length, ids) in enumerate(prompts)])
    result = replayed(trace, Behaviour(caches=True))
    records = sorted(result.runs[0].records, key=lambda r: r.arrival)
    assert [r.prompt_tokens for r in records] == [length for length, _ in prompts]
    expected = [
        max((shared_tokens(prompt, earlier) // BLOCK * BLOCK for earlier in prompts[:n]), default=0)
        for n, prompt in enumerate(prompts)
    ]
    assert [r.cached_tokens for r in records] == expected
    assert sum(expected) > 0


@given(
    st.lists(st.integers(0, 3), max_size=6),
    st.lists(st.integers(0, 3), max_size=6),
    st.integers(1, 200),
    st.integers(1, 200),
)
def test_text_is_shared_as_far_as_ids_are_and_not_a_block_further(
    one: list[int], other: list[int], length: int, other_length: int
) -> None:
    """Ids stand for a block and everything before it; here in blocks of 32 tokens with one word per token."""
    ids = [[hash_of(found[: end + 1]) for end in range(len(found))] for found in (one, other)]
    writer = Writer(Words(0), 1.0)
    texts = [
        writer.write(Blocks(chain, 32, tokens, number)).split(" ")
        for number, (chain, tokens) in enumerate(zip(ids, (length, other_length), strict=True))
    ]
    assert [len(text) for text in texts] == [length, other_length]
    same_ids = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*ids, strict=False)))
    same_words = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False)))
    promised = min(same_ids * 32, length, other_length)
    assert promised <= same_words < promised + 6  # different keys differ within six words


def hash_of(path: list[int]) -> int:
    """An id per path, as traces number them."""
    return sum((step + 1) * 5**place for place, step in enumerate(path))


def test_requests_come_at_the_times_of_the_trace(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t", [(0, 20, 3, [0]), (2, 20, 4, [1]), (2.5, 20, 0, [2])])
    result = replayed(trace)
    assert [r.arrival for r in result.runs[0].records] == [0, 2, 2.5]
    assert [r.output_tokens for r in result.runs[0].records] == [3, 4, 1]  # one at least: nobody can ask for none
    fast = replayed(trace, time_scale=10)
    assert [r.arrival for r in fast.runs[0].records] == pytest.approx([0, 0.2, 0.25])


def test_a_rate_or_a_concurrency_takes_the_place_of_its_times(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t", [(100 * n, 20, 3, [n]) for n in range(4)])
    by_rate = replayed(trace, load=Load(rate=2, arrivals="constant"))
    assert [r.arrival for r in by_rate.runs[0].records] == [0, 0.5, 1.0, 1.5]
    closed = replayed(trace, Behaviour(ttft=0.5), Load(concurrency=2))
    assert [r.arrival for r in closed.runs[0].records] == pytest.approx([0, 0, 0.5, 0.5])


def test_limits_cut_the_trace_down(tmp_path: Path) -> None:
    trace = mooncake(tmp_path / "t", [(n, 1500, 300, [0, 1, n + 2]) for n in range(5)])
    behaviour = Behaviour(caches=True)
    result = replayed(trace, behaviour, Load(requests=3), max_input_tokens=600, max_output_tokens=2)
    assert [r.prompt_tokens for r in result.runs[0].records] == [600] * 3
    assert [r.output_tokens for r in result.runs[0].records] == [2] * 3
    assert [r.cached_tokens for r in result.runs[0].records] == [0, 592, 592]  # what is left is still shared
    by_time = replayed(trace, load=Load(duration=1.5))
    assert len(by_time.runs[0].records) == 2


def weka(path: Path, sessions: dict[str, list[tuple[float, int, float]]]) -> str:
    """sessions: id -> (t, prompt tokens, think time); a prompt extends the one before it. Ids are local: 1, 2 ..."""
    lines = [
        {
            "id": name,
            "block_size": 64,
            "requests": [
                {"t": t, "in": tokens, "out": 2, "hash_ids": list(range(1, tokens // 64 + 1)), "think_time": think}
                for t, tokens, think in requests
            ],
        }
        for name, requests in sessions.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_sessions_wait_for_their_answers_and_think(tmp_path: Path) -> None:
    """The server takes 1 s per answer; the recorded one took longer, but only thinking is replayed. A session's blocks
    are its own, although both number them alike."""
    trace = weka(tmp_path / "t", {"a": [(0, 128, 0), (9, 208, 3.0), (30, 272, 6.0)], "b": [(0, 128, 0), (9, 192, 4.0)]})
    result = replayed(trace, Behaviour(ttft=1.0, caches=True))
    found = sorted((r.conversation, r.turn, r.arrival, r.cached_tokens) for r in result.runs[0].records)
    # 208 tokens are three blocks and 16 tokens that are nobody else's
    assert found == [(0, 0, 0, 0), (0, 1, 4.0, 128), (0, 2, 11.0, 192), (1, 0, 0, 0), (1, 1, 5.0, 128)]
    assert [row.requests for row in result.runs[0].summary.turns] == [2, 2, 1]
    fast = replayed(trace, Behaviour(ttft=1.0), time_scale=2)
    assert sorted(r.arrival for r in fast.runs[0].records) == [0, 0, 2.5, 3.0, 6.5]
    one = replayed(trace, load=Load(requests=1))
    assert {r.conversation for r in one.runs[0].records} == {0}


def test_azure_has_lengths_without_prefixes(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.5000000,64,4\n2023-11-16 18:15:48.0000000,80,2\n"
    )
    result = replayed(str(path), Behaviour(caches=True))
    assert [(r.arrival, r.prompt_tokens, r.cached_tokens) for r in result.runs[0].records] == [(0, 64, 0), (1.5, 80, 0)]


def test_a_trace_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("hello\n")
    with pytest.raises(ConfigError, match="line 1 is of no known trace format"):
        replayed(str(tmp_path / "t"))
    with pytest.raises(ConfigError, match="missing: there is no such trace file"):
        replayed(str(tmp_path / "missing"))
