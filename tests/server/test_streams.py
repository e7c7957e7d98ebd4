"""Streams that every reader survives: of lines, of silences, behind proxies."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import anthropic
import httpx
import httpx2
import openai
import pytest

from kvtrove.server.body import scan
from kvtrove.server.settings import Limits
from tests.server.fake_engine import FakeEngine
from tests.server.in_process import Connection, running_app

HI = [{"role": "user", "content": "Hi"}]
BREAKS = "a\u2028b\u2029c\u0085d"
FORMAT = {"type": "json_schema", "schema": {"const": BREAKS}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HI, "guided_choice": [BREAKS]}),
        ("/v1/completions", {"prompt": "Hi", "guided_choice": [BREAKS], "max_tokens": 99}),
        ("/v1/messages", {"messages": HI, "max_tokens": 99, "output_config": {"format": FORMAT}}),
        ("/v1/responses", {"input": "Hi", "text": {"format": FORMAT}}),
    ],
)
def test_every_event_is_one_line_to_every_reader(alice: httpx.Client, path: str, body: dict[str, Any]) -> None:
    with alice.stream("POST", path, json=body | {"stream": True, "temperature": 0}) as answer:
        lines = [line for line in answer.iter_lines() if line]  # which splits like str.splitlines
    for line in lines:
        name, _, value = line.partition(": ")
        assert name in ("data", "event")
        if name == "data" and value != "[DONE]":
            json.loads(value)
    text = json.dumps("".join(lines))
    assert "2028" in text
    assert "0085" in text


SILENT = [
    ("/v1/chat/completions", {"messages": HI}, ": keep-alive\n\n"),
    ("/v1/completions", {"prompt": "x"}, ": keep-alive\n\n"),
    ("/v1/responses", {"input": "x"}, ": keep-alive\n\n"),
    ("/v1/messages", {"messages": HI, "max_tokens": 16}, 'event: ping\ndata: {"type":"ping"}\n\n'),
]


@pytest.mark.parametrize(("path", "body", "beat"), SILENT)
def test_a_stream_that_waits_for_a_seat_shows_that_it_lives(path: str, body: dict[str, Any], beat: str) -> None:
    async def scenario() -> None:
        engine = FakeEngine(seats=1, step_seconds=0.02)
        async with running_app(engine, limits=Limits(keep_alive=0.05)) as app:
            first = asyncio.ensure_future(app.complete(max_tokens=30))
            await app.until(lambda: engine.steps)
            waiting = Connection(app.app, path, json.dumps(body | {"stream": True}).encode())
            run = asyncio.ensure_future(waiting.run())
            await app.until(lambda: beat in waiting.text)
            assert not first.done(), "it waited while another had the only seat"
            await asyncio.gather(first, run)
            assert waiting.text.count(beat) >= 2
            rest = waiting.text.replace(beat, "")
            assert rest.endswith("\n\n")
            assert "keep-alive" not in rest
            assert waiting.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}

    asyncio.run(scenario())


def test_a_stream_that_moves_carries_nothing_else() -> None:
    async def scenario() -> None:
        async with running_app(FakeEngine(step_seconds=0.01), limits=Limits(keep_alive=5.0)) as app:
            assert "keep-alive" not in (await app.complete(max_tokens=10, stream=True)).text

    asyncio.run(scenario())


def test_the_official_clients_pass_over_keep_alives() -> None:
    async def scenario() -> None:
        engine = FakeEngine(seats=1, step_seconds=0.02)
        async with running_app(engine, limits=Limits(keep_alive=0.03)) as app:
            first = asyncio.ensure_future(app.complete(max_tokens=20))
            await app.until(lambda: engine.steps)
            ours = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app.app))
            theirs = openai.AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key="x", http_client=ours)
            stream = await theirs.chat.completions.create(model="demo", messages=HI, stream=True, max_tokens=3)  # type: ignore[call-overload]
            text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
            assert text.split() == ["word"] * 3
            second = asyncio.ensure_future(app.complete(max_tokens=20))
            await asyncio.sleep(0)
            other = anthropic.AsyncAnthropic(base_url="http://127.0.0.1", api_key="x", http_client=ours)
            async with other.messages.stream(model="demo", messages=HI, max_tokens=3) as events:  # type: ignore[arg-type]
                message = await events.get_final_message()
            assert message.content[0].text.split() == ["word"] * 3  # type: ignore[union-attr]
            await asyncio.gather(first, second)

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["/metrics", "/v1/models", "/health", "/version"])
def test_head_is_answered_like_get_without_the_body(alice: httpx.Client, path: str) -> None:
    head, get = alice.head(path), alice.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert alice.head("/v1/chat/completions").status_code == 405


def nested(depth: int) -> Any:
    value: Any = {"type": "object"}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize("depth", [120, 300, 450, 900, 20_000])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"])
def test_nesting_has_a_limit_that_is_named(alice: httpx.Client, path: str, depth: int) -> None:
    text = '{"type":"object"}'
    text = '{"a":' * (depth - 1) + text + "}" * (depth - 1)
    flat = f'{{"type":"function","name":"f","parameters":{text}}}'
    tool = f'{{"name":"f","input_schema":{text}}}' if "messages" in path else flat
    if "chat" in path:
        tool = f'{{"type":"function","function":{{"name":"f","parameters":{text}}}}}'
    hi = '"input":"x","messages":[{"role":"user","content":"x"}],"max_tokens":1'
    body = f'{{{hi},"tools":[{tool}]}}'
    answer = alice.post(path, content=body, headers={"content-type": "application/json"})
    if depth == 120:
        assert answer.status_code == 200, answer.text
    else:
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "nested_too_deep"), answer.text
        assert "at most 128 levels" in answer.json()["error"]["message"]


def test_json_inside_a_string_may_nest_too_deep_as_well(alice: httpx.Client) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": json.dumps(nested(700))}}
    messages = [*HI, {"role": "assistant", "tool_calls": [call]}]
    answer = alice.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
    assert answer.status_code == 400, answer.text
    assert "deep" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("text", "depth"),
    [("[]", 1), ('{"a":[{}]}', 3), ('["[[[", "]]]", "\\"[["]', 1), ("1", 0), ('[[],"\\\\",[[]]]', 3), ('["[[[', 1)],
)
def test_nesting_is_that_of_the_json(text: str, depth: int) -> None:
    assert scan(text.encode())[0] == depth


def test_nesting_is_found_in_a_moment() -> None:
    """A long string, many short ones, many brackets: time grows with the length alone."""
    for unit in ('"' + "x" * 10_000 + '",', '"a",', "[],", '"\\\\\\"",'):
        small, large = (b"[" + unit.encode() * (size // len(unit)) for size in (2**17, 2**21))
        start = time.perf_counter()
        scan(small)
        middle = time.perf_counter()
        scan(large)
        assert time.perf_counter() - middle < 200 * (middle - start) + 0.5
