"""Conversations: what templates see of them, and which turns go when they do not fit."""

from __future__ import annotations

import itertools
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtrove.request import RequestError
from kvtrove.server.chat.conversation import Conversation, checked, plain_message
from kvtrove.server.chat.truncation import STRIDE, Cuts, smallest_cut, turns
from kvtrove.server.context import refuse_hopeless, refuse_unless_it_fits
from kvtrove.server.errors import ApiError
from tests.server.live import CONTEXT

ROLES = st.lists(st.sampled_from(["system", "user", "assistant", "tool"]), max_size=30)


def messages(roles: list[str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": str(i)} for i, role in enumerate(roles)]


@given(ROLES)
def test_cuts_take_whole_turns_and_leave_system_and_the_newest(roles: list[str]) -> None:
    talk = messages(roles)
    groups = turns(talk)
    assert sorted(i for group in groups for i in group) == [i for i, role in enumerate(roles) if role != "system"]
    assert all(roles[group[0]] == "user" for group in groups[1:])
    options = Cuts(talk)
    assert all(set(a) < set(b) for a, b in itertools.pairwise(options)), "each drops more than the last"
    for dropped in options:
        assert not {i for i in dropped if roles[i] == "system"}
        assert not set(dropped) & set(groups[-1])
        assert dropped == list(range(min(dropped), max(dropped) + 1)) or "system" in roles


def test_the_cut_stays_where_it_is_while_the_conversation_grows() -> None:
    """So several requests in a row begin with the same tokens, and the cache serves them."""

    def dropped(num_turns: int, room: int) -> list[int]:
        talk = messages(["system", *["user", "assistant"] * num_turns])
        return smallest_cut(Cuts(talk), lambda cut: len(talk) - len(cut) <= room) or []

    first = [len(dropped(n, 21)) // 2 for n in range(11, 30)]
    assert first == sorted(first)
    assert set(first) == {STRIDE * i for i in range(1, len(set(first)) + 1)}


def test_the_smallest_cut_that_fits_is_found_in_few_tries() -> None:
    options = [list(range(n)) for n in range(1, 200)]
    tries: list[int] = []

    def fits(cut: list[int]) -> bool:
        tries.append(len(cut))
        return len(cut) >= 77

    assert smallest_cut(options, fits) == list(range(77))
    assert len(tries) <= 2 * 8, "twice log2 of the options"
    assert smallest_cut(options, lambda cut: False) is None
    assert smallest_cut([], lambda cut: True) is None


def test_a_template_sees_plain_messages() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert plain_message({"role": "developer", "content": "x"}, "m") == {"role": "system", "content": "x"}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert plain_message({"role": "user", "content": parts}, "m")["content"] == "a\nb"
    plain = plain_message({"role": "assistant", "content": None, "tool_calls": [call]}, "m")
    assert plain["content"] == ""
    assert plain["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    broken = {**call, "function": {"name": "f", "arguments": "{cut"}}
    assert (
        plain_message({"role": "assistant", "tool_calls": [broken]}, "m")["tool_calls"][0]["function"]["arguments"]
        == "{cut"
    )
    with pytest.raises(RequestError, match=r"m\[1\]: this model reads text, not 'input_audio'"):
        plain_message({"role": "user", "content": [parts[0], {"type": "input_audio"}]}, "m")


def test_which_tools_may_be_called() -> None:
    tools = tuple({"type": "function", "function": {"name": name}} for name in "fg")

    def offered(choice: str) -> list[str]:
        talk = checked(Conversation(({"role": "user", "content": "x"},), tools, choice))
        return [tool["function"]["name"] for tool in talk.offered_tools]

    assert [offered(choice) for choice in ("auto", "required", "none", "g")] == [["f", "g"], ["f", "g"], [], ["g"]]
    with pytest.raises(RequestError, match="'h' is not among the tools: f, g"):
        offered("h")


@given(st.integers(1, 300), st.none() | st.integers(1, 300))
def test_what_does_not_fit_is_told_what_would(num_tokens: int, max_tokens: int | None) -> None:
    context = 200
    fits = num_tokens + (max_tokens or 1) <= context
    try:
        refuse_unless_it_fits(num_tokens, max_tokens, context, None, "prompt", "max_tokens")
        assert fits
    except ApiError as error:
        assert not fits
        numbers = [int(word) for word in str(error).replace(",", " ").replace(":", " ").split() if word.isdigit()]
        assert context in numbers
        assert num_tokens in numbers
        better = {"lower": context - num_tokens, "shorten": context - (max_tokens or 1)}
        assert any(n in numbers for n in better.values()) or better["shorten"] < 1


def test_only_a_prompt_that_is_too_long_says_so_in_the_clients_words() -> None:
    """Whoever reads them shortens the conversation; an answer that is asked to be too long needs no such thing."""
    for num_tokens, param, code in ((200, "prompt", "context_length_exceeded"), (199, "max_tokens", "invalid_value")):
        with pytest.raises(ApiError) as refused:
            refuse_unless_it_fits(num_tokens, 50, 200, None, "prompt", "max_tokens")
        assert (refused.value.param, refused.value.code) == (param, code)
        for phrase in ("prompt is too long: 200 tokens > 150 maximum", "This model's maximum context length is 200 "):
            assert (phrase in str(refused.value)) == (num_tokens == 200)


def test_a_hopeless_text_is_refused_unread() -> None:
    refuse_hopeless(1000, 10, 100, "prompt")
    with pytest.raises(ApiError, match="1010 characters, at least 101 tokens"):
        refuse_hopeless(1010, 10, 100, "prompt")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_truncation_drops_middle_turns_and_says_so(alice: httpx.Client, path: str) -> None:
    talk: list[dict[str, str]] = []
    for turn in range(10):
        talk += [
            {"role": "user", "content": f"{turn} " + "words " * 300},
            {"role": "assistant", "content": "Yes. " * 100},
        ]
    talk.append({"role": "user", "content": "the newest question"})
    fields = {"input": talk} if path.endswith("responses") else {"messages": talk}
    body: dict[str, Any] = {"model": "demo", "max_tokens": 16, "max_output_tokens": 16, **fields}
    refused = alice.post(path, json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    answer = alice.post(path, json=body | {"truncation": "auto"})
    assert answer.status_code == 200, answer.text
    dropped = answer.json()["kvtrove"]["truncated_messages"]
    assert dropped == list(range(len(dropped)))
    assert len(dropped) % (2 * STRIDE) == 0
    assert 0 < len(dropped) < len(talk) - 1
    usage = answer.json()["usage"]
    assert sum(value for name, value in usage.items() if name in ("prompt_tokens", "input_tokens")) < CONTEXT


def test_a_short_conversation_is_left_alone(alice: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "short"}], "max_tokens": 2, "truncation": "auto"}
    assert "kvtrove" not in alice.post("/v1/chat/completions", json=body).json()
    body["messages"] = [{"role": "user", "content": "word " * 9000}]
    assert alice.post("/v1/chat/completions", json=body).status_code == 400, "the newest turn alone is too long"
