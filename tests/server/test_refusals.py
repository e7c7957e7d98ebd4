"""What is refused, with which status, type, code and field: one row each, over plain HTTP."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest

from tests.server.conftest import ADMIN, ALICE, MAX_BODY
from tests.server.live import VOCAB, LiveServer

HI = [{"role": "user", "content": "Hi"}]
CHAT, COMPLETE = "/v1/chat/completions", "/v1/completions"
TEXT = {"type": "text", "text": ""}
FUNCTION = {"type": "function", "function": {"name": "f"}}
CUSTOM = {"type": "custom", "custom": {"name": "c"}}
SEARCH = {"type": "web_search"}
LISTED = "message.output_text.logprobs"


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def bash(choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "messages": HI,
        "max_tokens": 4,
        "tools": [{"type": "bash_20250124", "name": "bash"}],
        "tool_choice": choice,
    }


def allowed(name: str) -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": name}}
    return {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [tool, CUSTOM]}}


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}


WRONG: list[tuple[str, dict[str, Any], int, str, str | None]] = [
    (CHAT, {}, 400, "missing_field", "messages"),
    (CHAT, {"messages": "Hi"}, 400, "invalid_type", "messages"),
    (CHAT, {"messages": []}, 400, "invalid_type", "messages"),
    (CHAT, {"messages": [{"role": "king", "content": "Hi"}]}, 400, "invalid_type", "messages"),
    (CHAT, {"messages": [{"role": "user", "content": 7}]}, 400, "invalid_type", "messages"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "invalid_value", "messages"),
    (CHAT, {"messages": HI, "max_tokens": "10"}, 400, "invalid_type", "max_tokens"),
    (CHAT, {"messages": HI, "max_tokens": 0}, 400, "invalid_type", "max_tokens"),
    (CHAT, {"messages": HI, "max_tokens": True}, 400, "invalid_type", "max_tokens"),
    (CHAT, {"messages": HI, "max_tokens": 5000}, 400, "invalid_value", "max_tokens"),
    (CHAT, {"messages": HI, "max_completion_tokens": 5000}, 400, "invalid_value", "max_completion_tokens"),
    (CHAT, {"messages": [{"role": "user", "content": "x " * 9000}]}, 400, "context_length_exceeded", "messages"),
    (CHAT, {"messages": HI, "max_tokens": 2.5}, 400, "invalid_type", "max_tokens"),
    (CHAT, {"messages": HI, "seed": "1"}, 400, "invalid_type", "seed"),
    (CHAT, {"messages": HI, "tool_choice": "any"}, 400, "invalid_type", "tool_choice"),
    (CHAT, {"messages": HI, "tools": [{"type": "function"}]}, 400, "invalid_value", "tools"),
    (CHAT, {"messages": HI, "tools": [function("a/b")]}, 400, "invalid_value", "tools"),
    (CHAT, {"messages": HI, "tools": [function("a" * 65)]}, 400, "invalid_value", "tools"),
    (CHAT, {"messages": HI, "tools": [function("")]}, 400, "invalid_value", "tools"),
    (CHAT, {"messages": HI, "tools": [CUSTOM], "tool_choice": CUSTOM}, 400, "invalid_value", "tool_choice"),
    (CHAT, {"messages": HI, "tools": [FUNCTION], "functions": [{"name": "f"}]}, 400, "invalid_value", "functions"),
    (CHAT, {"messages": HI, "tools": [FUNCTION], "tool_choice": allowed("g")}, 400, "invalid_value", "tool_choice"),
    (CHAT, {"messages": HI, "tools": [CUSTOM], "tool_choice": allowed("c")}, 400, "invalid_value", "tool_choice"),
    (CHAT, {"messages": HI, "temperature": 1e999}, 400, "invalid_type", "temperature"),
    (CHAT, {"messages": HI, "temperature": -0.5}, 400, "invalid_value", "temperature"),
    (CHAT, {"messages": HI, "top_p": 2}, 400, "invalid_value", "top_p"),
    (CHAT, {"messages": HI, "n": 1000}, 400, "invalid_value", "n"),
    (CHAT, {"messages": HI, "stop": ["x"] * 17}, 400, "invalid_value", "stop"),
    (CHAT, {"messages": HI, "stop": "x" * 300}, 400, "invalid_value", "stop"),
    (CHAT, {"messages": HI, "stop": ""}, 400, "invalid_value", "stop"),
    (CHAT, {"messages": HI, "top_logprobs": 2}, 400, "invalid_value", "top_logprobs"),
    (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 50}, 400, "invalid_value", "top_logprobs"),
    (CHAT, {"messages": HI, "logit_bias": {"x": 1}}, 400, "invalid_value", "logit_bias"),
    (CHAT, {"messages": HI, "logit_bias": {"99999": 1}}, 400, "invalid_value", "logit_bias"),
    (CHAT, {"messages": HI, "allowed_token_ids": []}, 400, "invalid_value", "allowed_token_ids"),
    (CHAT, {"messages": HI, "tool_choice": "required"}, 400, "invalid_value", "tool_choice"),
    (
        CHAT,
        {"messages": HI, "tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        400,
        "invalid_value",
        "tool_choice",
    ),
    (CHAT, {"messages": HI, "response_format": {"type": "json_schema"}}, 400, "invalid_value", "response_format"),
    (CHAT, {"messages": HI, "response_format": schema({"type": "nonsense"})}, 400, "invalid_value", "response_format"),
    (
        CHAT,
        {"messages": HI, "response_format": schema({"$ref": "http://x/y"})},
        400,
        "invalid_value",
        "response_format",
    ),
    (
        CHAT,
        {"messages": HI, "response_format": schema({"x": "y" * 200_000})},
        400,
        "schema_too_large",
        "response_format",
    ),
    (CHAT, {"messages": HI, "guided_regex": "(("}, 400, "invalid_value", "guided_regex"),
    (
        CHAT,
        {"messages": HI, "guided_choice": ["abc"], "allowed_token_ids": [1]},
        400,
        "invalid_value",
        "allowed_token_ids",
    ),
    (CHAT, {"messages": HI, "guided_regex": "a", "guided_choice": ["a"]}, 400, "invalid_value", "guided_choice"),
    (CHAT, {"messages": HI, "guided_json": "{"}, 400, "invalid_value", "guided_json"),
    (CHAT, {"messages": HI, "guided_grammar": "start: nothing"}, 400, "invalid_value", "guided_grammar"),
    (CHAT, {"messages": HI, "guided_grammar": "root ::= nothing"}, 400, "invalid_value", "guided_grammar"),
    (CHAT, {"messages": HI, "grammar": "root ::= " + "(" * 9000}, 400, "invalid_value", "grammar"),
    (CHAT, {"messages": HI, "chat_template": "{{ 1 }}"}, 400, "invalid_value", "chat_template"),
    (CHAT, {"messages": HI, "modalities": ["text", "audio"]}, 400, "invalid_type", "modalities"),
    (CHAT, {"messages": HI, "continue_final_message": True, "add_generation_prompt": True}, 400, "invalid_value", None),
    (CHAT, {"messages": HI, "chat_template_kwargs": {"messages": []}}, 400, "invalid_value", "chat_template_kwargs"),
    (CHAT, {"messages": HI, "model": "other"}, 404, "model_not_found", "model"),
    (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, 400, "invalid_value", None),
    (COMPLETE, {}, 400, "missing_field", "prompt"),
    (COMPLETE, {"prompt": ""}, 400, "invalid_value", "prompt"),
    (COMPLETE, {"prompt": []}, 400, "invalid_value", "prompt"),
    (COMPLETE, {"prompt": [[]]}, 400, "invalid_value", "prompt"),
    (COMPLETE, {"prompt": [1, "x"]}, 400, "invalid_type", "prompt"),
    (COMPLETE, {"prompt": [-1]}, 400, "invalid_type", "prompt"),
    (COMPLETE, {"prompt": [VOCAB]}, 400, "invalid_value", "prompt"),
    (COMPLETE, {"prompt": ["x"] * 300}, 400, "invalid_value", "prompt"),
    (COMPLETE, {"prompt": [5] * 5000}, 400, "context_length_exceeded", "prompt"),
    (COMPLETE, {"prompt": "x", "max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    (COMPLETE, {"prompt": "x", "n": 3, "best_of": 2}, 400, "invalid_value", "best_of"),
    (COMPLETE, {"prompt": "x", "best_of": 3, "stream": True}, 400, "invalid_value", "best_of"),
    (COMPLETE, {"prompt": "x", "logprobs": 21}, 400, "invalid_value", "logprobs"),
    (COMPLETE, {"prompt": "x", "suffix": "y"}, 400, "invalid_value", "suffix"),
    (COMPLETE, {"prompt": "x", "cache_salt": ""}, 400, "invalid_type", "cache_salt"),
    ("/v1/messages", {"messages": HI}, 400, "missing_field", "max_tokens"),
    ("/v1/messages", {"messages": HI, "max_tokens": 4, "stop_sequences": ["x"] * 17}, 400, "invalid_value", None),
    (
        "/v1/messages",
        {"messages": [{"role": "user", "content": [{"type": "x"}]}], "max_tokens": 4},
        400,
        "invalid_value",
        None,
    ),
    ("/v1/messages", {"messages": [{"role": "user", "content": [TEXT]}], "max_tokens": 4}, 400, "invalid_value", None),
    ("/v1/responses", {"input": []}, 400, "invalid_type", "input"),
    ("/v1/responses", {"input": [{"type": "item_reference"}]}, 400, "invalid_value", "input"),
    ("/v1/responses", {"input": [{"type": "mesage"}]}, 400, "invalid_value", "input"),
    ("/v1/responses", {"input": [{"role": "tool", "content": "x"}]}, 400, "invalid_value", "input"),
    ("/v1/responses", {"instructions": "x"}, 400, "missing_field", "input"),
    ("/v1/responses", {"input": "x", "max_output_tokens": 5000}, 400, "invalid_value", "max_output_tokens"),
    ("/v1/responses", {"input": "x " * 9000}, 400, "context_length_exceeded", "input"),
    ("/v1/responses", {"input": "x", "conversation": "c"}, 400, "invalid_value", "conversation"),
    ("/v1/responses", {"input": "x", "conversation": {"id": "c"}}, 400, "invalid_value", "conversation"),
    ("/v1/responses", {"input": "x", "background": True}, 400, "invalid_value", "background"),
    ("/v1/responses", {"prompt": {"id": "p"}}, 400, "invalid_value", "prompt"),
    ("/v1/responses", {"input": "x", "include": [LISTED], "top_logprobs": 30}, 400, "invalid_value", "top_logprobs"),
    ("/v1/responses", {"input": "x", "tools": [SEARCH], "tool_choice": SEARCH}, 400, "invalid_value", "tool_choice"),
    ("/v1/responses", {"input": "x", "tools": [SEARCH], "tool_choice": "required"}, 400, "invalid_value", None),
    ("/v1/messages", bash({"type": "any"}), 400, "invalid_value", "tool_choice"),
    ("/v1/messages", bash({"type": "tool", "name": "bash"}), 400, "invalid_value", "tool_choice"),
    ("/tokenize", {}, 400, "invalid_value", "prompt"),
    ("/detokenize", {"tokens": ["x"]}, 400, "invalid_type", "tokens"),
    ("/v1/nothing", {}, 404, "not_found", None),
]


@pytest.mark.parametrize(("path", "body", "status", "code", "param"), WRONG)
def test_a_wrong_request_is_told_what_is_wrong(
    alice: httpx.Client, path: str, body: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    answer = alice.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), answer.text
    assert param is None or error["param"] == param
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) > 10
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_a_status_and_not_an_event(alice: httpx.Client, stream: bool) -> None:
    answer = alice.post(CHAT, json={"messages": HI, "max_tokens": 5000, "stream": stream})
    assert answer.status_code == 400
    assert "lower max_tokens to " in answer.json()["error"]["message"]


def test_what_the_message_says_would_fit_does_fit(alice: httpx.Client) -> None:
    refused = alice.post(CHAT, json={"messages": HI, "max_tokens": 5000}).json()["error"]["message"]
    fits = int(re.search(r"lower max_tokens to (\d+)", refused)[1])  # type: ignore[index]
    body = {"messages": HI, "guided_choice": ["x"]}
    assert alice.post(CHAT, json=body | {"max_tokens": fits}).status_code == 200
    assert alice.post(CHAT, json=body | {"max_tokens": fits + 1}).status_code == 400


@pytest.mark.parametrize(
    ("content", "kind", "code"),
    [
        (b"{", "application/json", "invalid_json"),
        (b"", "application/json", "missing_field"),
        (b'{"messages": []}', "text/plain", "invalid_type"),
        (b"\xff\xfe", "application/json", "invalid_json"),
        (b"[" * 100_000, "application/json", "nested_too_deep"),
        (b'{"n": ' + b"9" * 5000 + b"}", "application/json", "invalid_json"),
    ],
)
def test_a_body_that_is_no_json_object(alice: httpx.Client, content: bytes, kind: str, code: str) -> None:
    answer = alice.post(CHAT, content=content, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text


def test_a_large_body_is_refused_announced_or_not(server: LiveServer) -> None:
    with server.client(ALICE) as client:
        answer = client.post(CHAT, content=b"x" * (MAX_BODY + 1), headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    with server.client(ALICE) as client:
        parts = (b"x" * 65536 for _ in range(5))
        answer = client.post(CHAT, content=parts, headers={"content-type": "application/json"})
        assert answer.status_code == 413


@pytest.mark.parametrize("path", ["/v1/models", "/version", "/openapi.json", "/tokenizer_info", "/nothing", CHAT])
@pytest.mark.parametrize("key", [None, "-", "wrong", ALICE[:-1], ALICE + "x"])
def test_every_route_wants_a_key(server: LiveServer, path: str, key: str | None) -> None:
    with server.client(key) as client:
        answer = client.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_health_wants_none(server: LiveServer) -> None:
    with server.client() as client:
        for path in ("/health", "/health/live"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["status"]) == (200, "ready")


def test_admin_routes_want_an_admin(server: LiveServer) -> None:
    with server.client(ALICE) as client:
        for path, body in (("/v1/cache/clear", {}), ("/v1/log_level", {"level": "debug"})):
            answer = client.post(path, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_only")
    server.wait_idle(ADMIN)
    with server.client(ADMIN) as client:
        assert client.post("/v1/log_level", json={"level": "debug"}).json() == {"level": "debug"}
        assert client.post("/v1/log_level", json={"level": "loud"}).status_code == 400
        client.post(COMPLETE, json={"prompt": "cached " * 100, "max_tokens": 1})
        server.wait_idle(ADMIN)
        cached = server.blocks(ADMIN)["cached"]
        assert cached > 0
        assert client.post("/v1/cache/clear").json() == {"blocks": cached}
        assert server.blocks(ADMIN)["cached"] == 0


def test_a_wrong_method_names_itself(alice: httpx.Client) -> None:
    answer = alice.get(CHAT)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "does not take GET" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("sent", "kept"), [("my-id.7", True), ("a" * 129, False), ("two words", False), ("", False)])
def test_a_sane_request_id_is_kept(alice: httpx.Client, sent: str, kept: bool) -> None:
    answer = alice.get("/version", headers={"x-request-id": sent})
    assert (answer.headers["x-request-id"] == sent) == kept
    assert answer.headers["x-request-id"]


def test_unknown_fields_are_ignored_and_logged(alice: httpx.Client, server: LiveServer) -> None:
    answer = alice.post(CHAT, json={"messages": HI, "max_tokens": 1, "reasoning_wishes": 3, "priority": 1})
    assert answer.status_code == 200
    assert "ignored unknown fields: reasoning_wishes" in server.log.read_text()


def test_no_key_reaches_the_log(server: LiveServer) -> None:
    with server.client("wrong-secret-key-000") as client:
        client.get("/v1/models", params={"q": "x"})
    log = server.log.read_text()
    assert "wrong-secret-key-000" not in log
    assert ALICE not in log
