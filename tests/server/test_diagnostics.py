"""Why a prompt missed the cache, in the words of Anthropic's and of OpenAI's API; and lines that go to its end."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import Any

import anthropic
import httpx
import openai
import pytest

from kvtrove.server.chat.conversation import Conversation
from kvtrove.server.routes.common import settled
from kvtrove.server.settings import ServerSettings
from kvtrove.server.volatile import kind_of, moved_back
from tests.server.conftest import ALICE
from tests.server.live import LiveServer

SYSTEM = "You are a patient teacher of the old school. " * 12
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object", "properties": {}}}


def talk(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


@pytest.fixture
def unique() -> str:
    return uuid.uuid4().hex


CHANGES = [
    ({}, None),
    ({"system": "Another. " + SYSTEM}, "system"),
    ({"tools": [TOOL | {"name": "see"}]}, "tools"),
    ({"tools": []}, "tools"),
    ({"messages": talk("A first question", "An answer", "A second question")}, "messages"),
    ({"system": "Other", "tools": []}, "system"),
]


@pytest.mark.parametrize(("change", "part"), CHANGES)
@pytest.mark.parametrize("stream", [False, True])
def test_messages_say_what_changed(
    server: LiveServer, unique: str, change: dict[str, Any], part: str | None, stream: bool
) -> None:
    client = anthropic.Anthropic(base_url=server.url, api_key=ALICE, max_retries=0)
    question = f"A question about {unique}"
    settings: dict[str, Any] = {"model": "demo", "max_tokens": 4, "system": SYSTEM, "tools": [TOOL]}
    settings["messages"] = talk(question)
    first = client.messages.create(**settings, diagnostics={"previous_message_id": None})
    assert first.diagnostics is None
    settings["messages"] = talk(question, first.content[0].text, "And then?")
    settings |= change
    settings["diagnostics"] = {"previous_message_id": first.id}
    if stream:
        with client.messages.stream(**settings) as events:
            second = events.get_final_message()
    else:
        second = client.messages.create(**settings)
    if part is None:
        assert second.diagnostics is None
        return
    reason = second.diagnostics.cache_miss_reason
    assert reason.type == f"{part}_changed"
    assert reason.cache_missed_input_tokens >= 0
    if part != "tools":  # the demo's template writes no tools
        assert reason.cache_missed_input_tokens > 0


@pytest.mark.parametrize(("change", "part"), CHANGES)
def test_responses_say_what_changed(server: LiveServer, unique: str, change: dict[str, Any], part: str | None) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=ALICE, max_retries=0)
    question = f"A question about {unique}"
    tools = [{"type": "function", "name": "look", "parameters": {"type": "object"}}]
    settings: dict[str, Any] = {"model": "demo", "max_output_tokens": 4, "instructions": SYSTEM, "tools": tools}
    first = client.responses.create(**settings, input=talk(question))
    assert first.prompt_cache_diagnostics is None
    given = talk(question, first.output_text, "And then?")
    if "system" in change:
        settings["instructions"] = change["system"]
    if "tools" in change:
        settings["tools"] = [tools[0] | {"name": "see"}] if change["tools"] else []
    given = change.get("messages", given)
    second = client.responses.create(**settings, input=given, prompt_cache_options={"comparison_response_id": first.id})
    found = second.prompt_cache_diagnostics
    if part is None:
        assert found.type == "cache_hit"
        return
    assert (found.type, found.reason) == ("cache_miss", "tools_changed" if part == "tools" else "input_changed")
    assert found.cache_missed_tokens >= 0
    assert 0 <= found.comparison_reusable_tokens <= first.usage.input_tokens


def test_what_another_tenant_was_answered_is_not_found(server: LiveServer, alice: httpx.Client) -> None:
    body: dict[str, Any] = {"messages": talk("Hi"), "max_tokens": 1}
    with server.client("bob-key-0123456789ab") as bob:
        theirs = bob.post("/v1/messages", json=body).json()["id"]
    for asked in (theirs, "msg_none", "msg_"):
        answer = alice.post("/v1/messages", json=body | {"diagnostics": {"previous_message_id": asked}}).json()
        assert answer["diagnostics"] == {"cache_miss_reason": {"type": "previous_message_not_found"}}
    salted = alice.post("/v1/messages", json=body | {"cache_salt": "x"}).json()["id"]
    answer = alice.post("/v1/messages", json=body | {"diagnostics": {"previous_message_id": salted}}).json()
    assert answer["diagnostics"]["cache_miss_reason"]["type"] == "previous_message_not_found"
    options = {"prompt_cache_options": {"comparison_response_id": "resp_none"}}
    answer = alice.post("/v1/responses", json={"input": "Hi", "max_output_tokens": 1, **options}).json()
    assert answer["prompt_cache_diagnostics"] == {"type": "comparison_response_not_found"}
    assert "diagnostics" not in alice.post("/v1/messages", json=body).json(), "nobody asked"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("x-anthropic-billing-header: cc_version=2; cch=1;", "billing header"),
        ("Today is 2026-11-29.", "date"),
        ("Current time: 14:03", "time"),
        ("Request 7f3c2b1a-0000-4000-8000-1234567890ab", "uuid"),
        ("session: a8f3k2l9x0p4", "nonce"),
        ("You are GPT 4.", None),
        ("You are kind.", None),
        ("", None),
        ("On 2026-11-29 " + "much happened. " * 20, None),
    ],
)
def test_what_looks_volatile(line: str, kind: str | None) -> None:
    assert kind_of(line) == kind


def test_only_the_head_of_the_system_message_moves() -> None:
    system = {"role": "system", "content": "Today is 2026-11-29.\nIt is 14:03.\n\nYou are kind.\nBorn 2020-01-01."}
    rest = {"role": "system", "content": "You are kind.\nBorn 2020-01-01."}
    moved = "\n\nToday is 2026-11-29.\nIt is 14:03."
    user, answer, result = [*talk("Hi", "Yes"), {"role": "tool", "content": "3", "tool_call_id": "c"}]
    assert moved_back([system, user]) == ((rest, user | {"content": "Hi" + moved}), ["date", "time"])
    assert moved_back([system, user, answer]) == ((rest, user | {"content": "Hi" + moved}, answer), ["date", "time"])
    assert moved_back([system, user, answer, result])[0][-1] == result | {"content": "3" + moved}
    only = {"role": "system", "content": "Today is 2026-11-29."}
    for same in ([only, user], [user, answer], [rest, user], [system], [system, answer]):
        assert moved_back(same) == (tuple(same), [])


@pytest.mark.parametrize(
    ("flag", "field", "moves"), [(False, None, False), (True, None, True), (True, False, False), (False, True, True)]
)
def test_a_request_decides_before_the_server(flag: bool, field: bool | None, moves: bool) -> None:
    service: Any = SimpleNamespace(settings=ServerSettings(stable_prefix=flag))
    system = {"role": "system", "content": "Today is 2026-11-29.\nYou are kind."}
    given = Conversation((system, *talk("Hi")))
    conversation, note = settled(given, service, field)
    assert (conversation != given, note) == (moves, {"moved_lines": ["date"]} if moves else {})


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_a_stable_prefix_is_reused_whatever_day_it_is(alice: httpx.Client, unique: str, path: str) -> None:
    def ask(day: int, stable: bool) -> tuple[float, dict[str, Any]]:
        system = f"Today is 2026-11-{day}.\n{SYSTEM}"
        body: dict[str, Any] = {"messages": talk("What day is it?"), "max_tokens": 4, "stable_prefix": stable}
        if path == "/v1/messages":
            body["system"] = system
        elif path == "/v1/responses":
            body = {"input": "What day is it?", "instructions": system, "stable_prefix": stable}
        else:
            body["messages"] = [{"role": "system", "content": system}, *body["messages"]]
        body |= {"cache_report": True, "cache_salt": f"{unique} {stable}"}
        answer = alice.post(path, json=body).raise_for_status().json()
        report = answer["kvtrove"]["cache_report"]
        return report["reused_tokens"] / report["prompt_tokens"], answer["kvtrove"]

    for stable in (False, True):
        ask(28, stable)
        reused, notes = ask(29, stable)
        assert notes["cache_report"]["first_divergence"]["volatile"] == "date"
        assert notes.get("moved_lines") == (["date"] if stable else None)
        assert (reused > 0.7) == stable, notes
