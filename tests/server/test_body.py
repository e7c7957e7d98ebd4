"""Bodies: how much is read of one, and that the first thing wrong with it ends the reading."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from kvtrove.server import json_pieces, text_pool
from kvtrove.server.body import MAX_CONTAINERS, MAX_MEMBERS, read, scan
from kvtrove.server.errors import ApiError
from kvtrove.server.json_pieces import read_json
from kvtrove.server.protocol.chat import ChatRequest
from kvtrove.server.protocol.completions import CompletionRequest
from kvtrove.server.protocol.messages import MessagesRequest
from kvtrove.server.protocol.responses import ResponsesRequest
from kvtrove.server.protocol.tokenize import DetokenizeRequest
from kvtrove.text.json_text import MANY as WRITTEN_AT_ONCE
from kvtrove.text.json_text import has_many, write_json
from tests.server.in_process import running_app

MANY = 19_000
HI = {"role": "user", "content": "hi"}
WRONG = [
    (CompletionRequest, {"prompt": [1.5] * MANY}, "prompt"),
    (CompletionRequest, {"prompt": [None] * MANY}, "prompt"),
    (CompletionRequest, {"prompt": [[1.5] * MANY]}, "prompt"),
    (CompletionRequest, {"prompt": "x", "stop_token_ids": [1.5] * MANY}, "stop_token_ids[0]"),
    (CompletionRequest, {"prompt": "x", "logit_bias": dict.fromkeys(map(str, range(MANY)), "x")}, "logit_bias"),
    (ChatRequest, {"messages": [1] * MANY}, "messages[0]"),
    (ChatRequest, {"messages": [{"role": "user", "content": [1] * MANY}]}, "messages[0].content"),
    (MessagesRequest, {"max_tokens": 1, "messages": [{"role": "user", "content": [1] * MANY}]}, "messages[0].content"),
    (ResponsesRequest, {"input": [1] * MANY}, "input"),
    (ResponsesRequest, {"input": "x", "metadata": dict.fromkeys(map(str, range(MANY)), 1)}, "metadata"),
    (DetokenizeRequest, {"tokens": [1.5] * MANY}, "tokens[0]"),
]


@pytest.mark.parametrize(("model", "body", "place"), WRONG)
def test_validation_ends_with_the_first_wrong_item(model: type[BaseModel], body: dict[str, Any], place: str) -> None:
    with pytest.raises(ValidationError) as error:
        model.model_validate(body)
    assert error.value.error_count() < 20, "one for each form that the field may have"
    with pytest.raises(ApiError) as refusal:
        read(json.dumps(body).encode(), model, 128)
    assert refusal.value.status == 400
    assert str(refusal.value).startswith(place)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [HI] * (MAX_CONTAINERS + 1)},
        {"messages": [HI], "x": [[]] * (MAX_CONTAINERS + 1)},
        {"messages": [HI], "x": dict.fromkeys(map(str, range(MAX_MEMBERS + 1)), 1)},
    ],
)
def test_a_body_of_too_many_parts_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="at most") as refusal:
        read(json.dumps(body).encode(), ChatRequest, 128)
    assert (refusal.value.status, refusal.value.code) == (400, "too_many_values")


@pytest.mark.parametrize("blocks", ["", "x" * (2**18 - 7), "x" * 2**19])
def test_the_scan_counts_across_blocks_and_not_in_strings(blocks: str) -> None:
    value = {"a": [{"b": '}]"[{:'}, blocks], blocks + "\\": [[1]], "c": '\\"'}
    assert scan(json.dumps(value).encode()) == (3, 5, 4)


def test_halves_of_surrogate_pairs_and_byte_order_marks_are_read() -> None:
    text = b'{"messages": [{"role": "user", "content": "\\ud800"}]}'
    for body in (text, b"\xef\xbb\xbf" + text.replace(b"\\ud800", b"hi")):
        assert isinstance(read(body, ChatRequest, 128), ChatRequest)


LEAVES = (1, -2.5, True, None, 10**30, "a,b", 'q"\\', "}{][", "x" * 70, "\u00e9\u2028", "", "\ud800")
NAMES = ("a", "b,", 'c"', "d\\", "\u00e9", "")


def made_up(rng: random.Random, depth: int) -> Any:
    kind = rng.random()
    if depth == 0 or kind < 0.4:
        return rng.choice(LEAVES)
    if kind < 0.7:
        return [made_up(rng, depth - 1) for _ in range(rng.randrange(6))]
    return {rng.choice(NAMES): made_up(rng, depth - 1) for _ in range(rng.randrange(6))}


def damaged(rng: random.Random, text: bytes) -> bytes:
    at, other = rng.randrange(len(text)), bytes([rng.choice(b',:[]{}"\\ 1')])
    return text[:at] + rng.choice((b"", other, other + text[at : at + 1])) + text[at + 1 :]


def result(read: Any, text: bytes) -> str:
    try:
        return repr(read(text))
    except ValueError:
        return "no JSON"


def test_texts_read_in_pieces_are_read_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_pieces, "PIECE", 40)
    rng, refused = random.Random(1), 0
    for _ in range(2000):
        value = made_up(rng, 5)
        text = json.dumps(value, indent=rng.choice((None, 1)), ensure_ascii=True).encode()
        assert read_json(text) == value
        broken = damaged(rng, text) or b"1"
        assert result(read_json, broken) == result(json.loads, broken), broken
        refused += result(json.loads, broken) == "no JSON"
    assert 500 < refused < 1900, "some of the damage must be damage, and some harmless"


def test_an_error_in_a_large_body_says_where() -> None:
    text = b'{"prompt": [' + b"1, " * 200_000 + b"x]}"
    with pytest.raises(ValueError, match=f"char {text.index(b'x')}"):
        read_json(text)


@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"separators": (",", ":")}, {"sort_keys": True}])
def test_large_values_are_written_as_small_ones_are(options: dict[str, Any]) -> None:
    value = {"b": [1, None, "\u00e9\u2028", {"c": [0.1] * WRITTEN_AT_ONCE}], "a": {}}
    assert has_many(value)
    assert not has_many({"b": "x" * 10**6})
    assert write_json(value, **options) == json.dumps(value, ensure_ascii=False, **options)


def test_memory_of_large_work_goes_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    returned: list[bool] = []
    monkeypatch.setattr(text_pool, "TRIM_AFTER", 0.0)
    monkeypatch.setattr(text_pool, "return_freed_memory", lambda: returned.append(True))

    async def ask() -> None:
        async with running_app() as app:
            for text in ("x", "x"):
                assert (await app.client.post("/tokenize", json={"prompt": text})).status_code == 200
            assert not returned, "small work leaves nothing behind"
            assert (await app.client.post("/tokenize", json={"prompt": "x " * 40_000})).status_code == 200
            await app.until(lambda: returned)

    asyncio.run(ask())
