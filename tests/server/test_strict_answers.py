"""Every answer and every event of a stream is what the official clients' types say, field by field."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anthropic.types as anthropic
import httpx
import openai.types as openai
import openai.types.chat as chat
import openai.types.responses as responses
import pytest
from openai.types.shared import ErrorObject

from tests.server.fake_engine import FakeEngine
from tests.server.in_process import running_app
from tests.server.strict import check, event_type, events

ONE: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}},
    "required": ["a"],
    "additionalProperties": False,
}
HI = [{"role": "user", "content": "Hi"}]
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": ONE}}
FLAT = {"type": "function", "name": "f", "parameters": ONE, "strict": True}
SPACE = {"type": "namespace", "name": "n", "description": "Some.", "tools": [FLAT | {"name": "g"}]}
TOOL = {"name": "f", "input_schema": ONE}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "one", "schema": ONE}}
LISTED = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}

CHAT: list[dict[str, Any]] = [
    {"max_tokens": 4},
    {"max_tokens": 4, "n": 2, "logprobs": True, "top_logprobs": 2, "cache_report": True},
    {"max_tokens": 80, "tools": [FUNCTION, {"type": "custom", "custom": {"name": "c"}}], "tool_choice": "required"},
    {"max_tokens": 80, "functions": [FUNCTION["function"]], "function_call": {"name": "f"}},
    {"max_tokens": 40, "response_format": SCHEMA},
    {"max_tokens": 9, "temperature": 0, "stop": [" "]},
]
COMPLETIONS: list[dict[str, Any]] = [
    {"max_tokens": 4},
    {"max_tokens": 3, "n": 2, "logprobs": 2, "cache_report": True},
]
RESPONSES: list[dict[str, Any]] = [
    {"max_output_tokens": 4, "instructions": "Be kind.", "metadata": {"a": "b"}},
    {"max_output_tokens": 4, **LISTED, "tools": [FLAT, SPACE, {"type": "web_search"}], "cache_report": True},
    {"max_output_tokens": 80, "tools": [SPACE, FLAT], "tool_choice": {"type": "function", "name": "g"}},
    {
        "max_output_tokens": 80,
        "tools": [FLAT, {"type": "mcp", "server_label": "m"}],
        "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]},
    },
    {"max_output_tokens": 40, "text": {"format": {"type": "json_schema", "name": "one", "schema": ONE}}},
    {"max_output_tokens": 4, "prompt_cache_options": {"comparison_response_id": "resp_1"}},
]
MESSAGES: list[dict[str, Any]] = [
    {"max_tokens": 4, "system": "Be kind."},
    {"max_tokens": 0},
    {"max_tokens": 2, "system": "Today is 2026-11-29.\nBe kind.", "stable_prefix": True},
    {"max_tokens": 80, "tools": [TOOL, {"type": "bash_20250124", "name": "bash"}], "tool_choice": {"type": "any"}},
    {"max_tokens": 40, "output_config": {"format": {"type": "json_schema", "schema": ONE}}},
    {"max_tokens": 4, "diagnostics": {"previous_message_id": "msg_1"}, "cache_report": True},
    {"max_tokens": 4, "diagnostics": {"previous_message_id": None}},
]


def post(client: httpx.Client, path: str, **body: Any) -> httpx.Response:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("body", CHAT)
def test_chats(alice: httpx.Client, body: dict[str, Any]) -> None:
    check(chat.ChatCompletion, post(alice, "/v1/chat/completions", messages=HI, **body).json())
    for options in ({}, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}):
        streamed = post(alice, "/v1/chat/completions", messages=HI, stream=True, stream_options=options, **body)
        for event in events(streamed):
            check(chat.ChatCompletionChunk, event)


@pytest.mark.parametrize("body", COMPLETIONS)
def test_completions(alice: httpx.Client, body: dict[str, Any]) -> None:
    check(openai.Completion, post(alice, "/v1/completions", prompt="Hi", **body).json())
    options = {"include_usage": True}
    *chunks, last = events(post(alice, "/v1/completions", prompt="Hi", stream=True, stream_options=options, **body))
    for chunk in chunks:
        for choice in chunk["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"  # null before the end, as in OpenAI's own API
        check(openai.Completion, chunk)
    check(openai.Completion, last)
    assert last["usage"]["completion_tokens"] >= 1


@pytest.mark.parametrize("body", RESPONSES)
def test_responses(alice: httpx.Client, body: dict[str, Any]) -> None:
    whole = post(alice, "/v1/responses", input="Hi", temperature=0, **body).json()
    check(responses.Response, whole)
    told = events(post(alice, "/v1/responses", input="Hi", stream=True, temperature=0, **body))
    for n, event in enumerate(told):
        if event["type"] == "response.function_call_arguments.done":
            assert event.pop("name")  # some releases of the client demand it, others do not know it
        check(event_type(responses.ResponseStreamEvent, event), event)
        assert event["sequence_number"] == n

    def content(answer: dict[str, Any]) -> list[Any]:
        for item in answer["output"]:
            del item["id"]
            item.pop("call_id", None)
            for part in item.get("content", []):  # values differ in the last bits between a cold and a warm cache
                part["logprobs"] = [entry["token"] for entry in part["logprobs"]]
        return list(answer["output"])

    assert content(told[-1]["response"]) == content(whole)
    check(responses.InputTokenCountResponse, post(alice, "/v1/responses/input_tokens", input="Hi", **body).json())


@pytest.mark.parametrize("body", MESSAGES)
def test_messages(alice: httpx.Client, body: dict[str, Any]) -> None:
    whole = post(alice, "/v1/messages", messages=HI, **body).json()
    check(anthropic.Message, whole)
    for event in events(post(alice, "/v1/messages", messages=HI, stream=True, **body)):
        check(event_type(anthropic.RawMessageStreamEvent, event), event)
    count = post(alice, "/v1/messages/count_tokens", messages=HI, **body).json()
    check(anthropic.MessageTokensCount, count)
    assert count["input_tokens"] == whole["usage"]["input_tokens"] + whole["usage"]["cache_read_input_tokens"]


def test_models(alice: httpx.Client) -> None:
    for model in alice.get("/v1/models").json()["data"]:
        check(openai.Model, model)
    version = {"anthropic-version": "2023-06-01"}
    listed = alice.get("/v1/models", headers=version).json()
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, "demo", "also/demo")
    for model in [*listed["data"], alice.get("/v1/models/also/demo", headers=version).json()]:
        check(anthropic.ModelInfo, model)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("body", [{}, {"model": "none", "prompt": "x", "messages": HI, "input": "x", "max_tokens": 1}])
def test_refusals(alice: httpx.Client, path: str, body: dict[str, Any]) -> None:
    answer = alice.post(path, json=body)
    assert answer.status_code in (400, 404), answer.text
    check(ErrorObject, answer.json()["error"])
    check(anthropic.ErrorResponse, answer.json())


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/v1/responses", {"input": "Hi"}, lambda event: event_type(responses.ResponseStreamEvent, event)),
        ("/v1/messages", {"messages": HI, "max_tokens": 9}, lambda event: anthropic.ErrorResponse),
    ],
)
def test_the_end_of_a_stream_that_fails(path: str, body: dict[str, Any], kind: Callable[[Any], Any]) -> None:
    async def scenario() -> None:
        engine = FakeEngine()

        def fail() -> None:
            if engine.steps >= 2:
                raise RuntimeError("broken")

        engine.before_step = fail
        async with running_app(engine) as app:
            last = events(await app.client.post(path, json=body | {"stream": True}))[-1]
            check(kind(last), last)

    asyncio.run(scenario())
