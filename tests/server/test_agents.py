"""Requests as today's agents send them: served as they come, and what was left out of them is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import anthropic.types as messages_types
import httpx
import openai
import openai.types.responses as responses_types
import pytest

from kvtrove.request import RequestError
from kvtrove.server.protocol.chat import ChatRequest
from kvtrove.server.protocol.messages import MessagesRequest
from kvtrove.server.protocol.responses import ResponsesRequest
from kvtrove.server.routes import chat_input, messages_input, responses_input
from kvtrove.server.routes.toolset import LeftOut
from tests.server.conftest import ALICE
from tests.server.live import LiveServer
from tests.server.strict import check, event_type, events

FOLDER = Path(__file__).parent / "agents"
HI = [{"role": "user", "content": "Hi"}]
THOUGHT = {"type": "thinking", "thinking": "hm"}


def recorded(name: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return body


def test_codex_is_served(alice: httpx.Client) -> None:
    told = events(alice.post("/v1/responses", json=recorded("codex") | {"max_output_tokens": 8}))
    for event in told:
        check(event_type(responses_types.ResponseStreamEvent, event), event)
    left_out = told[-1]["response"]["kvtrove"]["left_out"]
    assert left_out == [
        "tools[2]: custom",
        "tools[3]: web_search",
        *(f"tools[{5 + n}]: {kind}" for n, kind in enumerate(HOSTED)),
        "input[4]: web_search_call",
        "input[8].output[1]: input_image",
        "input[14]: compaction",
        "input[15]: item_reference",
        "input[16]: item_reference",
    ]


HOSTED = ("local_shell", "mcp", "file_search", "code_interpreter", "image_generation")


def test_codex_is_read() -> None:
    conversation, functions = responses_input.read(ResponsesRequest(**recorded("codex")), LeftOut())
    assert [m["role"] for m in conversation.messages] == [
        *("system", "system", "user", "user", "assistant", "tool", "assistant", "tool", "assistant", "tool"),
        *("assistant", "tool", "assistant", "user"),
    ]
    assert [m["reasoning_content"] for m in conversation.messages if "reasoning_content" in m] == ["Look at the files."]
    calls = [call["function"] for m in conversation.messages for call in m.get("tool_calls", ())]
    assert [(call["name"], call["arguments"]) for call in calls] == [
        ("exec_command", {"cmd": "ls"}),
        ("spawn_agent", {"message": "read src"}),
        ("apply_patch", {"input": "*** Begin Patch\n*** End Patch"}),
        ("local_shell", {"type": "exec", "command": ["make"], "env": {}}),
    ]
    assert [m["content"] for m in conversation.messages if m["role"] == "tool"] == [
        "Makefile\nsrc",
        "agent 1",
        "Done!",
        "ok",
    ]
    offered = [tool["function"]["name"] for tool in conversation.tools]
    assert offered == ["exec_command", "update_plan", "spawn_agent", "multi_agent.exec_command"]
    assert functions.namespaces["multi_agent.exec_command"] == ("multi_agent", "exec_command")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["spawn_agent", "multi_agent.exec_command"])
def test_a_function_of_a_namespace_is_called_by_both_names(server: LiveServer, name: str, stream: bool) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=ALICE, max_retries=0)
    body = recorded("codex")
    settings: dict[str, Any] = {"model": "demo", "input": "Go.", "tools": body["tools"], "max_output_tokens": 80}
    settings["tool_choice"] = {"type": "function", "name": name}
    if stream:
        with client.responses.stream(**settings) as told:
            [call] = told.get_final_response().output
    else:
        [call] = client.responses.create(**settings).output
    assert (call.type, call.namespace, call.name) == ("function_call", "multi_agent", name.rpartition(".")[2])
    json.loads(call.arguments)


def test_claude_code_is_served(alice: httpx.Client) -> None:
    body = recorded("claude_code") | {"ignore_eos": True, "max_tokens": 8}
    told = events(alice.post("/v1/messages", json=body))
    for event in told:
        check(event_type(messages_types.RawMessageStreamEvent, event), event)
    left_out = next(event["kvtrove"]["left_out"] for event in told if event["type"] == "message_delta")
    kinds = [tool["type"] for tool in body["tools"][2:]]
    assert left_out == [
        "messages[1].content[3]: server_tool_use",
        "messages[1].content[4]: web_search_tool_result",
        "messages[2].content[1].content[0]: image",
        "messages[2].content[2].content[1]: tool_reference",
        *(f"tools[{2 + n}]: {kind}" for n, kind in enumerate(kinds)),
    ]
    count = alice.post("/v1/messages/count_tokens", json=body).json()["input_tokens"]
    usage = told[0]["message"]["usage"]
    assert count == sum(usage[name] for name in usage if name.endswith("input_tokens"))
    assert usage["cache_creation_input_tokens"] + usage["cache_read_input_tokens"] > 0, "it marks what is to be kept"


def test_claude_code_is_read() -> None:
    conversation = messages_input.conversation_of(MessagesRequest(**recorded("claude_code")))
    system, first, called, *results, switched, last = conversation.messages
    assert "billing" not in system["content"]
    assert system["content"].startswith("You are an agent")
    assert "Read the notes" in first["content"]
    assert (called["content"], called["reasoning_content"]) == ("Reading.", "I read them.")
    assert [call["function"]["name"] for call in called["tool_calls"]] == ["Read", "Read", "ToolSearch"]
    texts = [result["content"] for result in results]
    assert "Buy milk." in texts[0]
    assert "And bread." in texts[0]
    assert texts[1:] == ["[image left out: this model reads text]", "found"]
    assert switched == {"role": "system", "content": "The user has switched to plan mode."}
    assert all(piece in last["content"] for piece in ("The plan: rest.", "Rest is good.", "Go on."))
    assert [len(tool["function"]["name"]) for tool in conversation.tools] == [4, 79]


@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: [{"type": "text", "text": text}]])
def test_a_billing_header_costs_no_cache(alice: httpx.Client, wrap: Any) -> None:
    """Of the system prompt, and of a system message: it changes with every request and tells the model nothing."""
    counts = []
    for n, cch in enumerate(("0a1b2", "99f3c")):
        header = f"x-anthropic-billing-header: cc_version=2.1; cch={cch};"
        kind = "blocks" if isinstance(wrap(""), list) else "text"
        text = f"You ({kind}) are kind. " * 40
        system = [*wrap(header), *wrap(text)] if kind == "blocks" else f"{header}\n{text}"
        body = {"system": system, "messages": [*HI, {"role": "system", "content": wrap(header)}, *HI]}
        answer = alice.post("/v1/messages", json=body | {"max_tokens": 1}).json()
        usage = answer["usage"]
        total = usage["input_tokens"] + usage["cache_read_input_tokens"]
        counts.append(total)
        assert alice.post("/v1/messages/count_tokens", json=body).json()["input_tokens"] == total
        assert (usage["cache_read_input_tokens"] > 0.8 * total) == (n == 1)
    assert counts[0] == counts[1]


def test_a_call_of_claude_code_is_forced(server: LiveServer) -> None:
    client = anthropic.Anthropic(base_url=server.url, api_key=ALICE, max_retries=0)
    body = recorded("claude_code")
    message = client.messages.create(
        model="demo", messages=HI, max_tokens=80, tools=body["tools"], tool_choice={"type": "tool", "name": "Read"}
    )
    [block] = message.content
    assert block.input["file_path"] in ("notes.txt", "a.png")


def test_a_chat_of_another_time_is_read() -> None:
    """functions and function_call, thoughts among the parts, custom calls, arguments that are null or an object."""
    body = ChatRequest(
        messages=[
            *HI,
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
            {"role": "function", "name": "f", "content": "one"},
            {
                "role": "assistant",
                "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "One."}],
            },
            {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": None}}]},
            {"role": "assistant", "tool_calls": [{"id": "d", "function": {"name": "f", "arguments": {"a": 2}}}]},
            {"role": "assistant", "tool_calls": [{"type": "custom", "id": "e", "custom": {"name": "g", "input": "x"}}]},
        ],
        functions=[{"name": "f", "parameters": {"type": "object"}}, {"name": "g"}],
        function_call={"name": "f"},
    )
    conversation = chat_input.conversation_of(body)
    _, called, result, answer, *others = conversation.messages
    assert called["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}
    assert (result["role"], result["tool_call_id"]) == ("tool", called["tool_calls"][0]["id"])
    assert (answer["content"], answer["reasoning_content"]) == ("One.", "hm")
    assert [m["tool_calls"][0]["function"]["arguments"] for m in others] == [{}, {"a": 2}, {"input": "x"}]
    assert conversation.tool_choice == "f"
    assert [tool["function"]["name"] for tool in conversation.offered_tools] == ["f"]


def test_a_picture_that_a_tool_took_is_left_out_of_a_chat(alice: httpx.Client) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages: list[Any] = [*HI, {"role": "assistant", "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "done"}, picture]})
    answer = alice.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1}).json()
    assert answer["kvtrove"]["left_out"] == ["messages[2].content[1]: image_url"]
    messages[0] = {"role": "user", "content": [picture]}
    assert alice.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1}).status_code == 400


def test_what_is_left_out_is_told_in_a_header_whatever_its_name_is(alice: httpx.Client) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}, {"type": "web\r\nset-cookie: \u2603"}]
    for stream in (False, True):
        body = {"messages": [{"role": "user", "content": "x"}], "tools": tools, "max_tokens": 1, "stream": stream}
        answer = alice.post("/v1/chat/completions", json=body).raise_for_status()
        told = answer.headers["x-kvtrove-warning"]
        assert "left out: tools[1]: web??set-cookie: ?" in told
        assert "set-cookie" not in answer.headers


def test_thoughts_between_parts_of_a_message_stay_in_it() -> None:
    def thought(text: str) -> dict[str, Any]:
        return {"type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}

    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    items = [{"role": "user", "content": "x"}, thought("One."), {"role": "assistant", "content": "y"}, thought("Two.")]
    body = ResponsesRequest.model_validate({"input": [*items, call]})
    conversation, _ = responses_input.read(body, LeftOut())
    assert [m.get("reasoning_content") for m in conversation.messages] == [None, "One.Two."]


def test_legacy_functions_are_answered_in_their_words(server: LiveServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=ALICE, max_retries=0)
    one = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    settings: dict[str, Any] = {"model": "demo", "messages": HI, "max_tokens": 80, "function_call": {"name": "f"}}
    settings["functions"] = [{"name": "f", "parameters": one}]
    [choice] = client.chat.completions.create(**settings).choices
    assert (choice.finish_reason, choice.message.tool_calls) == ("function_call", None)
    assert (choice.message.function_call.name, choice.message.function_call.arguments) == ("f", '{"a": 1}')
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**settings, stream=True)]
    calls = [chunk.delta.function_call for chunk in chunks if chunk.delta.function_call]
    assert (calls[0].name, "".join(call.arguments or "" for call in calls)) == ("f", '{"a": 1}')
    assert chunks[-1].finish_reason == "function_call"


@pytest.mark.parametrize(("mode", "names", "choice"), [("auto", ["f"], "auto"), ("required", ["g", "f"], "required")])
def test_allowed_tools_leave_the_prompt_as_it_is(mode: str, names: list[str], choice: str) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in "fgh"]
    named = [{"type": "function", "function": {"name": name}} for name in names]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}
    conversation = chat_input.conversation_of(ChatRequest(messages=HI, tools=tools, tool_choice=allowed))
    assert len(conversation.tools) == 3
    assert conversation.tool_choice == choice
    assert {tool["function"]["name"] for tool in conversation.offered_tools} == set(names)


def test_allowed_tools_of_which_none_is_a_function_allow_no_call() -> None:
    body = ResponsesRequest(
        input="x",
        tools=[{"type": "function", "name": "f"}, {"type": "web_search"}],
        tool_choice={"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]},
    )
    conversation, _ = responses_input.read(body, LeftOut())
    assert conversation.offered_tools == ()
    body.tool_choice.mode = "required"  # type: ignore[union-attr]
    with pytest.raises(RequestError, match="none of the tools that it allows is a function"):
        responses_input.read(body, LeftOut())


def test_a_note_stays_short() -> None:
    left_out = LeftOut()
    for n in range(100):
        left_out.add(f"input[{n}]", "x" * 1000)
    notes = left_out.note()["left_out"]
    assert len(notes) == 33
    assert max(map(len, notes)) < 100
    assert notes[-1] == "and 68 more"


@pytest.mark.parametrize("field", ["max_tokens", "seed", "n", "top_k", "min_tokens", "top_logprobs"])
def test_a_whole_number_may_have_a_point(alice: httpx.Client, field: str) -> None:
    body: dict[str, Any] = {"messages": HI, "max_tokens": 2, "logprobs": True, field: 1.0}
    assert alice.post("/v1/chat/completions", json=body).status_code == 200
    refused = alice.post("/v1/chat/completions", json=body | {field: 1.5}).json()["error"]
    assert (refused["param"], refused["code"]) == (field, "invalid_type")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_a_schema_beside_json_object_is_kept(alice: httpx.Client, path: str) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [7]}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_object", "schema": schema}
    if path == "/v1/responses":
        answer = alice.post(path, json={"input": "x", "text": {"format": wanted}}).json()
        text = answer["output"][0]["content"][0]["text"]
    else:
        answer = alice.post(path, json={"messages": HI, "response_format": wanted}).json()
        text = answer["choices"][0]["message"]["content"]
    assert text == '{"a": 7}'


def test_responses_draw_as_they_are_told(alice: httpx.Client) -> None:
    def text(**body: Any) -> str:
        answer = alice.post("/v1/responses", json={"input": "Tell me.", "max_output_tokens": 12, **body}).json()
        return str(answer["output"][0]["content"][0]["text"])

    greedy = text(temperature=0)
    assert text(temperature=1.9, top_k=1) == greedy
    assert text(temperature=1.9, seed=7) == text(temperature=1.9, seed=7) != greedy


def test_bytes_of_tokens_are_those_of_the_text(alice: httpx.Client) -> None:
    """A character of several tokens: its bytes add up to it, though none of them can be shown alone."""
    text = "naïve ☂ 𝄞 你"
    body = {"messages": HI, "guided_choice": [text], "logprobs": True, "top_logprobs": 3, "temperature": 0}
    [choice] = alice.post("/v1/chat/completions", json=body).json()["choices"]
    listed = choice["logprobs"]["content"]
    assert bytes(byte for token in listed for byte in token["bytes"]).decode().removesuffix("<|im_end|>") == text
    assert any("\ufffd" in token["token"] for token in listed), "the test wants characters of several tokens"
    for token in listed:
        assert all(isinstance(other["bytes"], list) for other in token["top_logprobs"])
