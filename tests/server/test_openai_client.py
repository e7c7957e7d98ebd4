"""OpenAI's own Python client against a real server."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import openai
import pytest

from tests.server.conftest import ALICE
from tests.server.live import CONTEXT, LiveServer

HELLO: list[Any] = [{"role": "user", "content": "Hello there!"}]
PERSON = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 9},
        "tame": {"type": "boolean"},
    },
    "required": ["kind", "age", "tame"],
    "additionalProperties": False,
}
EMPTY = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "count", "description": "Counts.", "parameters": PERSON}},
    {"type": "function", "function": {"name": "stop", "parameters": EMPTY}},
]


@pytest.fixture(scope="module")
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=ALICE, max_retries=0, timeout=60)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo", "also/demo"]
    assert client.models.retrieve("also/demo").id == "also/demo"


def test_a_chat_and_its_second_turn_reuses_the_first(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "Tell me about blocks. " * 20}]
    first = client.chat.completions.create(model="demo", messages=long, max_tokens=8, temperature=0)
    answer = first.choices[0].message
    assert first.choices[0].finish_reason in ("length", "stop")
    assert answer.role == "assistant"
    assert first.usage.completion_tokens <= 8
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    second = client.chat.completions.create(
        model="demo",
        messages=[*long, {"role": "assistant", "content": answer.content}, *HELLO],
        max_tokens=8,
    )
    reused = second.usage.prompt_tokens_details.cached_tokens
    assert reused >= first.usage.prompt_tokens // 32 * 32 - 32, (
        "all full blocks of the first prompt but the last tokens"
    )


def test_a_stream_adds_up_to_the_answer(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "demo", "messages": HELLO, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**settings)
    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert not chunks[-1].choices
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_continuous_usage_grows_with_every_chunk(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.chat.completions.create(
        model="demo", messages=HELLO, max_tokens=6, stream=True, stream_options=options
    )
    counts = [chunk.usage.completion_tokens for chunk in stream]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


def test_async_streams_run_side_by_side(server: LiveServer) -> None:
    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        stream = await client.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": f"Number {number}"}],
            max_tokens=12,
            stream=True,
            seed=number,
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

    async def both() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=ALICE, max_retries=0) as client:
            together = await asyncio.gather(*(one(client, number) for number in range(6)))
            return list(together), [await one(client, number) for number in range(6)]

    together, alone = asyncio.run(both())
    assert together == alone, "a seeded answer does not depend on what runs beside it"


def test_n_choices_and_their_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=HELLO, n=3, max_tokens=5, logprobs=True, top_logprobs=2, seed=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        listed = choice.logprobs.content
        assert 0 < len(listed) <= 5
        for token in listed:
            assert token.logprob <= 0
            assert len(token.top_logprobs) == 2
            assert token.top_logprobs[0].logprob >= max(token.top_logprobs[1].logprob, token.logprob)
            assert bytes(token.bytes).decode() == token.token
    assert answer.usage.completion_tokens == sum(len(c.logprobs.content) for c in answer.choices)


def test_streamed_logprobs_are_those_of_the_answer(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "demo", "messages": HELLO, "max_tokens": 9, "temperature": 0, "logprobs": True}
    whole = client.chat.completions.create(**settings).choices[0].logprobs.content
    chunks = client.chat.completions.create(**settings, stream=True)
    parts = [c.choices[0].logprobs for c in chunks if c.choices]
    assert [t.token for part in parts if part for t in part.content] == [t.token for t in whole]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"count", "stop"}), ({"type": "function", "function": {"name": "count"}}, {"count"})],
)
def test_a_forced_tool_call(client: openai.OpenAI, choice: Any, names: set[str], stream: bool) -> None:
    settings: dict[str, Any] = {
        "model": "demo",
        "messages": HELLO,
        "tools": TOOLS,
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "max_tokens": 200,
        "seed": 3,
    }
    if stream:
        with client.chat.completions.stream(**settings) as events:
            answer = events.get_final_completion()
    else:
        answer = client.chat.completions.create(**settings)
    [call] = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert not answer.choices[0].message.content
    assert call.id.startswith("call_")
    assert call.function.name in names
    arguments = json.loads(call.function.arguments)
    if call.function.name == "count":
        assert set(arguments) == set(PERSON["required"])
        assert arguments["kind"] in ("cat", "dog")


def test_the_result_of_a_tool_goes_back_in(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "stop", "arguments": '{"a": 1}'}}
    messages: list[Any] = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "stopped"},
    ]
    answer = client.chat.completions.create(model="demo", messages=messages, tools=TOOLS, max_tokens=4)
    assert answer.choices[0].message.role == "assistant"


def test_a_json_schema_is_kept(client: openai.OpenAI) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = client.chat.completions.create(
        model="demo", messages=HELLO, response_format=wanted, n=4, max_tokens=120, temperature=1.5, seed=5
    )
    for choice in answer.choices:
        person = json.loads(choice.message.content)
        assert person["kind"] in ("cat", "dog")
        assert 0 <= person["age"] <= 9
        assert choice.finish_reason == "stop"


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"guided_regex": "[ab]{3}-[0-9]{2}"}, r"[ab]{3}-[0-9]{2}"),
        ({"structured_outputs": {"choice": ["grün", "rot"]}}, "grün|rot"),
        ({"guided_grammar": 'start: "x" /[yz]+/ "!"', "max_tokens": 300}, r"x[yz]+!"),
        ({"grammar": 'root ::= "<" code ">"\ncode ::= [0-9]{3}'}, "<[0-9]{3}>"),
        ({"guided_json": json.dumps(PERSON)}, r'\{"kind": "(cat|dog)", "age": [0-9], "tame": (true|false)\}'),
    ],
)
def test_other_grammars_are_kept(client: openai.OpenAI, extra: dict[str, Any], pattern: str) -> None:
    limit = extra.pop("max_tokens", 60)
    answer = client.chat.completions.create(
        model="demo", messages=HELLO, max_tokens=limit, seed=2, logit_bias={"43": 3.0}, extra_body=extra
    )
    assert answer.choices[0].finish_reason == "stop"
    assert re.fullmatch(pattern, answer.choices[0].message.content)


def test_errors_become_the_clients_exceptions(client: openai.OpenAI, server: LiveServer) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "word " * 20_000}])
    assert long.value.code == "context_length_exceeded"
    assert str(CONTEXT) in str(long.value)
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="demo", messages=HELLO, temperature=-1)
    assert wrong.value.param == "temperature"
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="no-such-key-123456", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_completions_and_their_streams(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {
        "model": "demo",
        "prompt": ["One", "Two two"],
        "max_tokens": 6,
        "temperature": 0,
        "n": 2,
    }
    whole = client.completions.create(**settings)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    texts = ["", "", "", ""]
    for chunk in client.completions.create(**settings, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]


@pytest.mark.parametrize("stream", [False, True])
def test_responses(client: openai.OpenAI, stream: bool) -> None:
    settings: dict[str, Any] = {"model": "demo", "input": "Hello", "instructions": "Be brief.", "max_output_tokens": 6}
    if not stream:
        answer = client.responses.create(**settings, temperature=0)
    else:
        with client.responses.stream(**settings, temperature=0) as events:
            seen = list(events)
        kinds = [event.type for event in seen]
        assert kinds[-1] == "response.incomplete"
        answer = seen[-1].response
        assert "".join(e.delta for e in seen if e.type == "response.output_text.delta") == answer.output_text
        assert kinds[:4] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
        ]
        assert kinds[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output_text
    assert answer.usage.output_tokens == 6
    assert answer.usage.input_tokens_details.cached_tokens >= 0


@pytest.mark.parametrize("stream", [False, True])
def test_responses_call_functions(client: openai.OpenAI, stream: bool) -> None:
    tool: Any = {"type": "function", "name": "count", "parameters": PERSON, "strict": True}
    given: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "Count them."}]},
        {"type": "function_call", "call_id": "c1", "name": "count", "arguments": '{"kind": "cat"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"role": "user", "content": "Again."},
    ]
    settings: dict[str, Any] = {
        "model": "demo",
        "input": given,
        "tools": [tool],
        "tool_choice": {"type": "function", "name": "count"},
        "max_output_tokens": 200,
    }
    if stream:
        with client.responses.stream(**settings) as events:
            answer = events.get_final_response()
    else:
        answer = client.responses.create(**settings)
    [call] = answer.output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["kind"] in ("cat", "dog")
    assert answer.status == "completed"


def test_responses_need_the_whole_conversation(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="remembers no answers"):
        client.responses.create(model="demo", input="And then?", previous_response_id="resp_1")
