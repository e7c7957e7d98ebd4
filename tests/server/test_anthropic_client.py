"""Anthropic's own Python client against a real server."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from tests.server.conftest import ALICE
from tests.server.live import CONTEXT, LiveServer

HELLO: list[Any] = [{"role": "user", "content": "Hello there!"}]
GREEDY = {"temperature": 0}
TOOLS: list[Any] = [
    {
        "name": "paint",
        "description": "Paints.",
        "input_schema": {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "blue"]}},
            "required": ["colour"],
            "additionalProperties": False,
        },
    }
]


@pytest.fixture(scope="module")
def client(server: LiveServer) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=ALICE, max_retries=0, timeout=60)


def test_a_message_and_its_usage(client: anthropic.Anthropic) -> None:
    system = "You are kind. " * 20
    settings: dict[str, Any] = {"model": "demo", "system": system, "messages": HELLO, "max_tokens": 6}
    first = client.messages.create(**settings, extra_body=GREEDY)
    assert first.stop_reason == "max_tokens"
    assert first.content[0].type == "text"
    assert first.usage.output_tokens == 6
    again = client.messages.create(**settings, extra_body=GREEDY)
    assert again.content[0].text == first.content[0].text
    assert again.usage.cache_read_input_tokens > 0
    total = first.usage.input_tokens + first.usage.cache_read_input_tokens
    assert again.usage.input_tokens + again.usage.cache_read_input_tokens == total
    count = client.messages.count_tokens(model="demo", system=system, messages=HELLO)
    assert count.input_tokens == total


def test_a_stream_adds_up_to_the_message(client: anthropic.Anthropic) -> None:
    more = GREEDY | {"ignore_eos": True}
    settings: dict[str, Any] = {"model": "demo", "messages": HELLO, "max_tokens": 12, "extra_body": more}
    whole = client.messages.create(**settings)
    with client.messages.stream(**settings) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == 12
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-1] == "message_stop"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "paint"}])
def test_a_forced_tool_use(client: anthropic.Anthropic, choice: Any, stream: bool) -> None:
    settings: dict[str, Any] = {
        "model": "demo",
        "messages": HELLO,
        "max_tokens": 100,
        "tools": TOOLS,
        "tool_choice": choice | {"disable_parallel_tool_use": True},
    }
    if stream:
        with client.messages.stream(**settings) as events:
            message = events.get_final_message()
    else:
        message = client.messages.create(**settings)
    [block] = message.content
    assert message.stop_reason == "tool_use"
    assert block.type == "tool_use"
    assert block.name == "paint"
    assert block.input["colour"] in ("red", "blue")


def test_results_of_tools_and_blocks_of_text_go_in(client: anthropic.Anthropic) -> None:
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "Paint "}, {"type": "text", "text": "it."}]},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "paint", "input": {"colour": "red"}}],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "painted"}]},
                {"type": "text", "text": "Thanks."},
            ],
        },
    ]
    answer = client.messages.create(model="demo", messages=messages, tools=TOOLS, max_tokens=3)
    assert answer.role == "assistant"


def test_a_stop_sequence_is_named(client: anthropic.Anthropic) -> None:
    settings: dict[str, Any] = {"model": "demo", "messages": HELLO, "extra_body": GREEDY}
    text = client.messages.create(**settings, max_tokens=24).content[0].text
    stop = text[3:5]
    answer = client.messages.create(**settings, max_tokens=24, stop_sequences=[stop])
    assert answer.stop_reason == "stop_sequence"
    assert answer.stop_sequence == stop
    assert answer.content[0].text == text[: text.index(stop)]


def test_a_generous_max_tokens_ends_at_the_context(client: anthropic.Anthropic) -> None:
    words = [{"role": "user", "content": "word " * 700}]
    used = client.messages.count_tokens(model="demo", messages=words).input_tokens
    copies = [{"role": "user", "content": "word " * (700 * (CONTEXT - 6) // used)}]
    left = CONTEXT - client.messages.count_tokens(model="demo", messages=copies).input_tokens
    assert 0 < left < 400, "the test wants a prompt that nearly fills the context"
    answer = client.messages.create(model="demo", messages=copies, max_tokens=32_000, extra_body=GREEDY)
    assert answer.stop_reason in ("model_context_window_exceeded", "end_turn")


def test_a_schema_is_kept(client: anthropic.Anthropic) -> None:
    wanted: Any = {"format": {"type": "json_schema", "schema": TOOLS[0]["input_schema"]}}
    answer = client.messages.create(model="demo", messages=HELLO, max_tokens=60, output_config=wanted)
    assert answer.content[0].text in ('{"colour": "red"}', '{"colour": "blue"}')


def test_a_message_of_the_assistant_is_continued(client: anthropic.Anthropic, server: LiveServer) -> None:
    begun: list[Any] = [*HELLO, {"role": "assistant", "content": "The best is"}]
    count = client.messages.count_tokens(model="demo", messages=begun).input_tokens
    open_text = "<|im_start|>user\nHello there!<|im_end|>\n<|im_start|>assistant\nThe best is"
    with server.client(ALICE) as plain:
        assert plain.post("/tokenize", json={"prompt": open_text}).json()["count"] == count
    assert client.messages.create(model="demo", messages=begun, max_tokens=2).usage.output_tokens == 2


def test_no_tokens_asked_for_fills_the_cache(client: anthropic.Anthropic) -> None:
    settings: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "warm me up " * 60}]}
    empty = client.messages.create(**settings, max_tokens=0)
    assert (empty.content, empty.stop_reason, empty.usage.output_tokens) == ([], "max_tokens", 0)
    assert client.messages.create(**settings, max_tokens=1).usage.cache_read_input_tokens > 64


def test_errors_become_the_clients_exceptions(client: anthropic.Anthropic, server: LiveServer) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="claude", messages=HELLO, max_tokens=1)
    image: Any = {"type": "image", "source": {"type": "url", "url": "http://x"}}
    with pytest.raises(anthropic.BadRequestError, match="reads text, not 'image'"):
        client.messages.create(model="demo", messages=[{"role": "user", "content": [image]}], max_tokens=1)
    with pytest.raises(anthropic.AuthenticationError):
        anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0).models.list()


def test_an_output_format_ends_by_itself(client: anthropic.Anthropic) -> None:
    """It cannot go on past its end."""
    wanted = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    with pytest.raises(anthropic.BadRequestError, match="ignore_eos"):
        client.messages.create(
            model="demo", messages=HELLO, max_tokens=9, extra_body={"ignore_eos": True, "output_config": wanted}
        )
