"""Readers of recorded loads: what they find in real files, and how they name what is wrong in broken ones."""

from __future__ import annotations

import gzip
import json
from array import array
from pathlib import Path
from typing import Any

import pytest

from kvtrove.plan.traces import Trace, TraceRequest, read_trace, summarise
from kvtrove.plan.traces.fields import TraceError

DATA = Path(__file__).parents[2] / "data" / "traces"
MOONCAKE = {"timestamp": 1500, "input_length": 1100, "output_length": 7, "hash_ids": [4, 5, 6]}
WEKA: dict[str, Any] = {
    "id": "a",
    "block_size": 64,
    "requests": [
        {"t": 0.0, "in": 130, "out": 5, "hash_ids": [1, 2], "think_time": 0.0},
        {"t": 9.0, "in": 200, "out": 6, "hash_ids": [1, 2, 3], "think_time": 2.5},
    ],
}
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:47.9,10,3\n"


def written(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_the_mooncake_hour() -> None:
    trace = read_trace(DATA / "mooncake_conversation.jsonl.xz")
    summary = summarise(trace)
    assert (trace.block_size, summary.num_requests) == (512, 12_031)
    assert (round(summary.mean_prompt), round(summary.mean_output)) == (12_035, 343)
    assert summary.ideal_hit_ratio == pytest.approx(0.374, abs=0.001)
    assert summary.rate == pytest.approx(12_031 / 3537, rel=0.01)


def test_agent_sessions() -> None:
    trace = read_trace(DATA / "weka_sessions.jsonl.xz")
    assert trace.block_size == 64
    assert trace.has_sessions
    assert len({request.session for request in trace.requests}) == 4
    assert summarise(trace).ideal_hit_ratio > 0.5, "every turn repeats the one before it"


def test_azure_has_no_prefixes() -> None:
    trace = read_trace(DATA / "azure_2023_conversation.csv")
    assert (trace.block_size, len(trace.requests)) == (0, 300)
    assert trace.requests[0] == TraceRequest(0.0, 374, 44)
    assert summarise(trace).ideal_hit_ratio == 0


def test_fields_of_mooncake(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path / "t.jsonl", {**MOONCAKE, "timestamp": 3000}, "", MOONCAKE))
    assert [request.arrival for request in trace.requests] == [1.5, 3.0], "milliseconds, in order of time"
    assert trace.requests[0] == TraceRequest(1.5, 1100, 7, array("i", [4, 5, 6]))


def test_ids_of_sessions_are_made_unique(tmp_path: Path) -> None:
    """Both sessions have blocks 1 and 2; they are different blocks."""
    trace = read_trace(written(tmp_path / "t.jsonl", WEKA, {**WEKA, "id": "b"}))
    first, second = ({i for r in trace.requests if r.session == s for i in r.blocks} for s in ("a", "b"))
    assert len(first) == len(second) == 3
    assert not first & second
    assert [r.think_time for r in trace.requests if r.session == "a"] == [0.0, 2.5]


def test_sub_agents_are_requests_in_order_of_time(tmp_path: Path) -> None:
    agent = {"t": 3.0, "type": "subagent", "requests": [{"t": 1.0, "in": 70, "out": 1, "hash_ids": [9]}]}
    trace = read_trace(written(tmp_path / "t.jsonl", {**WEKA, "requests": [*WEKA["requests"], agent]}))
    assert [(r.arrival, r.prompt_tokens) for r in trace.requests] == [(0.0, 130), (4.0, 70), (9.0, 200)]


def test_fractions_of_azure(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path / "t.csv", AZURE))
    assert [r.arrival for r in trace.requests] == [0.0, pytest.approx(1.21941)]


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_compressed_files(suffix: str, tmp_path: Path) -> None:
    import lzma

    compress = {".gz": gzip.compress, ".xz": lzma.compress}[suffix]
    path = tmp_path / f"t.jsonl{suffix}"
    path.write_bytes(compress(json.dumps(MOONCAKE).encode()))
    assert len(read_trace(path).requests) == 1


def weka(**changes: Any) -> dict[str, Any]:
    return {**WEKA, "requests": [{**WEKA["requests"][0], **changes}]}


BROKEN = {
    "empty": ([""], "the trace is empty"),
    "unknown": (["hello"], "line 1 is of no known trace format: Mooncake has 'timestamp'"),
    "unknown object": ([{"a": 1}], "line 1 is of no known trace format"),
    "not json": ([MOONCAKE, "{"], r"line 2: not JSON"),
    "not an object": ([MOONCAKE, "[1]"], r"line 2: holds a list, expected a JSON object"),
    "missing": ([{**MOONCAKE, "output_length": None}], r"line 1: 'output_length' is None, expected a whole number"),
    "no prompt": ([{**MOONCAKE, "input_length": 0}], r"line 1: 'input_length' is 0, expected .* at least 1"),
    "negative time": ([{**MOONCAKE, "timestamp": -5}], r"line 1: 'timestamp' is -5, expected a number of at least 0"),
    "endless time": (
        ['{"timestamp": Infinity, "input_length": 5, "output_length": 1, "hash_ids": []}'],
        "'timestamp' is inf",
    ),
    "ids": ([{**MOONCAKE, "hash_ids": ["x"]}], r"line 1: 'hash_ids' is \['x'\], expected a list of whole numbers"),
    "huge id": ([{**MOONCAKE, "hash_ids": [2**40]}], r"line 1: 'hash_ids' is .* at most 31 bits"),
    "too many ids": (
        [{**MOONCAKE, "hash_ids": [1] * 4}],
        r"'hash_ids' has 4 entries, 1100 tokens have at most 3 blocks",
    ),
    "session without size": ([{**WEKA, "block_size": None}], r"line 1: 'block_size' is None"),
    "sizes differ": ([WEKA, {**WEKA, "block_size": 32}], r"line 2: 'block_size' is 32, expected 64 as in the lines"),
    "session field": ([weka(out=-1)], r"line 1: 'requests\[0\]\.out' is -1, expected a whole number"),
    "session ids": ([weka(hash_ids=[1, 2, 3, 4])], r"'requests\[0\]\.hash_ids' has 4 entries, 130 tokens .* 3 blocks"),
    "no requests": ([{**WEKA, "requests": 5}], r"line 1: 'requests' is 5, expected a list of objects"),
    "azure time": ([AZURE + "soon,5,5"], r"line 4: 'TIMESTAMP' is 'soon', expected a time such as 2023-11-16"),
    "azure count": ([AZURE + "2023-11-16 18:15:46,x,5"], r"line 4: 'ContextTokens' is 'x', expected a whole number"),
    "azure columns": ([AZURE + "5,5"], r"line 4: has 2 columns, expected TIMESTAMP,ContextTokens,GeneratedTokens"),
    "azure header only": ([AZURE.splitlines()[0]], r"line 1: the trace has a header, but no requests"),
}


@pytest.mark.parametrize(("lines", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_trace_names_line_and_field(lines: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        read_trace(written(tmp_path / "t.jsonl", *lines))
    assert "t.jsonl" in str(caught.value)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.jsonl: there is no such trace file"):
        read_trace(tmp_path / "none.jsonl")
    (tmp_path / "t.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(TraceError, match=r"t\.jsonl\.gz: cannot be read"):
        read_trace(tmp_path / "t.jsonl.gz")


def test_what_could_be_reused_at_best() -> None:
    """The last token of a prompt is always computed, and a partly filled block is never shared."""
    one = TraceRequest(0.0, 1024, 1, array("i", [1, 2]))
    again = TraceRequest(1.0, 1100, 1, array("i", [1, 2, 3]))
    other = TraceRequest(2.0, 1100, 1, array("i", [1, 9, 3]))
    summary = summarise(Trace("t", 512, [one, again, one, other]))
    assert summary.ideal_hit_ratio == (1024 + 512 + 512) / (1024 + 1100 + 1024 + 1100)
