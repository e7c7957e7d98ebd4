"""What two APIs say of keeping a prompt: it leaves the cache last, for a while, and is in nobody's way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.live import LiveServer, running_server

FLAGS = ("--num-blocks", "64", "--max-model-len", "512", "--block-size", "16", "--cache-report")
SYSTEM = "You are a patient teacher who tells of rivers and seas, and of all that swims in them. " * 4


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running_server(tmp_path_factory.mktemp("pins"), *FLAGS) as live, live.client() as client:
        yield client
        assert isinstance(live, LiveServer)


def chat(client: httpx.Client, text: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": text + SYSTEM}, {"role": "user", "content": "Go on."}]
    body = {"model": "demo", "max_tokens": 4, "messages": messages, **more}
    return client.post("/v1/chat/completions", json=body).raise_for_status().json()


def press(client: httpx.Client) -> None:
    """More prompts than the pool holds."""
    for first in range(12):
        prompt = {"model": "demo", "prompt": [first + 40, *range(3, 200)], "max_tokens": 1}
        client.post("/v1/completions", json=prompt).raise_for_status()


def reused(answer: dict[str, Any]) -> int:
    return answer["kvtrove"]["cache_report"]["reused_tokens"]


def pinned_blocks(client: httpx.Client) -> float:
    [line] = [one for one in client.get("/metrics").text.splitlines() if one.startswith("kvtrove_kv_soft_pinned_blo")]
    return float(line.split()[1])


def test_a_session_outlives_what_nobody_named(client: httpx.Client) -> None:
    kept = chat(client, "kept ", prompt_cache_key="a session")
    chat(client, "lost ")
    assert kept["kvtrove"]["cache_report"]["soft_pins"] == [{"tokens": None, "seconds": 300.0}]
    assert pinned_blocks(client) > 0
    press(client)
    assert reused(chat(client, "kept ", prompt_cache_key="a session")) > 0
    assert reused(chat(client, "lost ")) == 0


def test_pins_yield_when_there_is_nothing_else_left(client: httpx.Client) -> None:
    """The pool is full of what is to be kept for a day: every request is served all the same, and an hour is worth
    more than five minutes.
    """
    for number in range(6):
        chat(client, f"day {number} ", prompt_cache_options={"ttl": "24h" if number else "5m"})
    answer = client.post("/v1/completions", json={"model": "demo", "prompt": list(range(3, 480)), "max_tokens": 4})
    assert answer.raise_for_status().json()["usage"]["completion_tokens"] == 4
    assert reused(chat(client, "day 0 ")) == 0, "five minutes give way first"


def test_prewarm_computes_the_prompt_and_answers_nothing(client: httpx.Client) -> None:
    answer = chat(client, "warm ", prompt_cache_options={"prewarm": True, "ttl": 60}, n=2)
    [choice] = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
    assert (answer["usage"]["completion_tokens"], answer["usage"]["prompt_tokens"] > 60) == (0, True)
    assert reused(chat(client, "warm ")) > 60
    body = {"model": "demo", "input": "warm the river " * 20, "prompt_cache_options": {"prewarm": True}}
    response = client.post("/v1/responses", json=body).raise_for_status().json()
    assert (response["status"], response["output"], response["usage"]["output_tokens"]) == ("completed", [], 0)
    text = {"model": "demo", "prompt": ["eels " * 40, "bream " * 40], "n": 2, "best_of": 3, "max_tokens": 9}
    made = client.post("/v1/completions", json=text | {"prompt_cache_options": {"prewarm": True}}).raise_for_status()
    assert [choice["text"] for choice in made.json()["choices"]] == ["", ""], "one for each prompt"
    assert made.json()["usage"]["completion_tokens"] == 0
    usage = client.post("/v1/completions", json=text).raise_for_status().json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 64


def test_anthropics_marks_end_where_their_message_does(client: httpx.Client) -> None:
    hour, usual = {"type": "ephemeral", "ttl": "1h"}, {"type": "ephemeral"}
    body = {
        "model": "demo",
        "max_tokens": 4,
        "system": [{"type": "text", "text": SYSTEM, "cache_control": hour}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Tell me of eels.", "cache_control": usual}]},
            {"role": "assistant", "content": "They are long."},
            {"role": "user", "content": "How long?"},
        ],
    }
    answer = client.post("/v1/messages", json=body).raise_for_status().json()
    system, first = answer["kvtrove"]["cache_report"]["soft_pins"]
    usage = answer["usage"]
    assert (system["seconds"], first["seconds"]) == (3600.0, 300.0)
    assert 0 < system["tokens"] < first["tokens"] < answer["kvtrove"]["cache_report"]["prompt_tokens"]
    assert usage["cache_creation_input_tokens"] + usage["cache_read_input_tokens"] == first["tokens"]
    again = client.post("/v1/messages", json=body).raise_for_status().json()["usage"]
    assert again["cache_read_input_tokens"] > 0
    total = sum(usage[name] for name in usage if name.endswith("input_tokens"))
    assert total == answer["kvtrove"]["cache_report"]["prompt_tokens"]


def test_a_breakpoint_of_openai_ends_there_too(client: httpx.Client) -> None:
    part = {"type": "text", "text": SYSTEM, "prompt_cache_breakpoint": {"type": "explicit"}}
    body = {"messages": [{"role": "system", "content": [part]}, {"role": "user", "content": "Go on."}]}
    answer = chat(client, "", **body, prompt_cache_options={"mode": "explicit"})
    [pin] = answer["kvtrove"]["cache_report"]["soft_pins"]
    assert pin["seconds"] == 1800.0
    assert 0 < pin["tokens"] < answer["usage"]["prompt_tokens"]


WRONG = [
    ("chat/completions", {"prompt_cache_options": {"ttl": "soon"}}, "prompt_cache_options.ttl"),
    ("chat/completions", {"prompt_cache_options": {"ttl": "25h"}}, "prompt_cache_options.ttl"),
    ("chat/completions", {"prompt_cache_options": {"ttl": 0.5}}, "prompt_cache_options.ttl"),
    ("chat/completions", {"prompt_cache_options": {"mode": "x"}}, "prompt_cache_options.mode"),
    ("chat/completions", {"prompt_cache_options": {"prewarm": "yes"}}, "prompt_cache_options.prewarm"),
    ("chat/completions", {"prompt_cache_retention": "1h"}, "prompt_cache_retention"),
    ("chat/completions", {"prompt_cache_key": "x" * 513}, "prompt_cache_key"),
    ("messages", {"cache_control": {"type": "ephemeral", "ttl": "2h"}}, "cache_control.ttl"),
    ("messages", {"cache_control": {"type": "forever"}}, "cache_control.type"),
]


@pytest.mark.parametrize(("route", "more", "param"), WRONG)
def test_bad_values_are_named(client: httpx.Client, route: str, more: dict[str, Any], param: str) -> None:
    body = {"model": "demo", "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}], **more}
    answer = client.post(f"/v1/{route}", json=body)
    assert answer.status_code == 400, answer.text
    assert param in answer.text


def test_five_marks_are_too_many(client: httpx.Client) -> None:
    block = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    body = {"model": "demo", "max_tokens": 1, "messages": [{"role": "user", "content": [block] * 5}]}
    answer = client.post("/v1/messages", json=body)
    assert (answer.status_code, "more than 4 places" in answer.text) == (400, True)
