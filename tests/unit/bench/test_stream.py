"""Reading a stream: events however the bytes were cut, and tokens by the best source there is."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtrove.bench.stream import Events, Transcript, error_message

STREAM = b': keep-alive\n\ndata: {"a": 1}\n\nevent: x\r\ndata:{"b": "\xc3\xa4"}\r\n\r\ndata: [DONE]\n\n'


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_do_not_depend_on_how_the_bytes_were_cut(cuts: list[int]) -> None:
    events = Events()
    places = [0, *sorted(cuts), len(STREAM)]
    found = [p for start, end in pairwise(places) for p in events.feed(STREAM[start:end])]
    assert found == [b'{"a": 1}', '{"b": "ä"}'.encode(), b"[DONE]"]


def said(text: str, usage: int | None = None, **more: Any) -> bytes:
    event: dict[str, Any] = {"choices": [{"delta": {"content": text}, **more}]}
    if usage is not None:
        event["usage"] = {"prompt_tokens": 7, "completion_tokens": usage, "prompt_tokens_details": {"cached_tokens": 4}}
    return json.dumps(event).encode()


def total(tokens: int) -> bytes:
    return json.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": tokens}}).encode()


def transcript(*events: tuple[float, bytes]) -> Transcript:
    found = Transcript()
    for time, payload in events:
        found.add(time, payload)
    return found


ROLE = b'{"choices": [{"delta": {"role": "assistant", "content": ""}}]}'


def test_continuous_usage_counts_every_token_when_it_comes() -> None:
    """A chunk may bring several tokens, or a token whose text is not complete yet."""
    found = transcript((1.0, ROLE), (2.0, said("ab", 2)), (3.0, said("", 3)), (4.0, said("c", 5)), (4.5, total(5)))
    assert found.source == "continuous"
    assert list(found.arrivals()) == [(2.0, 2), (3.0, 1), (4.0, 2)]
    assert (found.prompt_tokens, found.cached_tokens) == (7, 4)
    assert found.text == "abc"


def test_a_total_at_the_end_is_exact_when_chunks_are_tokens() -> None:
    found = transcript((1.0, said("long word")), (2.0, said("b")), (3.0, total(2)))
    assert found.source == "final"
    assert list(found.arrivals()) == [(1.0, 1), (2.0, 1)]


def test_a_total_is_spread_over_chunks_by_their_length() -> None:
    found = transcript((1.0, said("aa")), (2.0, said("aaaaaa")), (3.0, said("aa")), (4.0, total(10)))
    assert list(found.arrivals()) == [(1.0, 2), (2.0, 6), (3.0, 2)]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 200))
def test_spreading_loses_no_token_and_the_first_chunk_has_one(lengths: list[int], tokens: int) -> None:
    events = [(float(n), said("x" * length)) for n, length in enumerate(lengths)]
    found = transcript(*events, (99.0, total(tokens))).arrivals()
    assert sum(count for _, count in found) == tokens
    assert found[0][0] == 0.0
    assert all(count > 0 for _, count in found)


def test_usage_on_the_last_chunk_only_is_a_total_not_a_running_count() -> None:
    found = transcript((1.0, said("a")), (2.0, said("b", 2)))
    assert found.source == "final"
    assert list(found.arrivals()) == [(1.0, 1), (2.0, 1)]


def test_usage_on_the_first_chunk_only_does_not_make_the_count_continuous() -> None:
    found = transcript((1.0, said("a", 1)), (2.0, said("b")), (3.0, said("c")), (4.0, total(3)))
    assert found.source == "final"
    assert list(found.arrivals()) == [(1.0, 1), (2.0, 1), (3.0, 1)]


def test_a_whole_answer_in_one_chunk_comes_at_one_time() -> None:
    found = transcript((1.0, said("all of it", 9)))
    assert list(found.arrivals()) == [(1.0, 9)]


def test_without_usage_a_chunk_is_a_token() -> None:
    found = transcript((1.0, ROLE), (2.0, said("a")), (3.0, said("bc")))
    assert found.source == "chunks"
    assert list(found.arrivals()) == [(2.0, 1), (3.0, 1)]


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"refusal": "no"},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
    ],
)
def test_reasoning_and_tool_calls_are_output(delta: dict[str, Any]) -> None:
    """The first token is the first that the model wrote, wherever the server shows it."""
    found = transcript((1.0, ROLE), (2.0, json.dumps({"choices": [{"delta": delta}]}).encode()))
    assert list(found.arrivals()) == [(2.0, 1)]
    assert found.text == ""


def test_completions_have_text_instead_of_a_delta() -> None:
    found = transcript((1.0, b'{"choices": [{"text": "a", "finish_reason": null}]}'))
    assert (found.text, found.complete) == ("a", False)
    found.add(2.0, b'{"choices": [{"text": "b", "finish_reason": "stop"}]}')
    assert (found.text, found.complete) == ("ab", True)


def test_done_and_finish_reason_both_complete_an_answer() -> None:
    assert transcript((1.0, b"[DONE]")).complete
    assert transcript((1.0, said("a", finish_reason="length"))).complete
    assert not transcript((1.0, said("a"))).complete


def test_an_error_in_the_stream_is_kept() -> None:
    assert transcript((1.0, b'{"error": {"message": "it\\n broke"}}')).error == "it broke"


@pytest.mark.parametrize("payload", [b"{oops", b"[1, 2]", b'"text"'])
def test_a_payload_that_is_no_object_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"line 1 column|is no object"):
        transcript((1.0, payload))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "a"}}, "a"),
        ({"error": "b"}, "b"),
        ({"detail": "c"}, "c"),
        ({"message": "d"}, "d"),
        ("e\n\n f", "e f"),
        ({"error": {"code": 5}}, "{'code': 5}"),
        ({"error": "\x1b[2Jgone\x07"}, "?[2Jgone?"),  # a server must not clear the terminal
    ],
)
def test_error_bodies_of_many_servers_become_one_line(body: Any, message: str) -> None:
    assert error_message(body) == message
