"""Answers as the three chat APIs tell them: the real server in process, its model made to write given texts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

import httpx
import pytest

from kvtrove.demo import demo_model_dir
from kvtrove.llm import LLM
from kvtrove.server.app import create_app
from kvtrove.server.auth import Keyring
from kvtrove.server.reports import Reports
from kvtrove.server.routes.reports import reports_router
from kvtrove.server.service import Service
from kvtrove.server.settings import ServerSettings
from kvtrove.text.chat_template import ChatTemplate
from tests.unit.text.chat_templates import CHATML, LLAMA_3, MISTRAL

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
THINKING = CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif")
MAY_THINK = CHATML + "{# <think></think> #}"
NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}}
HI = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(demo_model_dir(), block_size=16, num_blocks=256, warm_up=False, use_tqdm_on_load=False)


@asynccontextmanager
async def serving(llm: LLM, template: str = CHATML, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    engine = llm.llm_engine
    engine.tokenizer.chat_template = ChatTemplate(template, engine.tokenizer.named_tokens)
    reports = Reports(engine.tokenizer, engine.config.block_size)
    service = Service(engine, ServerSettings(served_model_names=("demo",), **settings), [reports])
    app = create_app(service, Keyring(), [reports_router(reports)])
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=30) as client,
    ):
        yield client


def in_loop(scenario: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine, on an event loop of its own."""

    @wraps(scenario)
    def test(*args: Any, **kwargs: Any) -> None:
        asyncio.run(scenario(*args, **kwargs))

    return test


def tools(schema: dict[str, Any] = NUMBER, name: str = "w") -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "parameters": schema}}]


async def chat(client: httpx.AsyncClient, text: str | None = None, **body: Any) -> dict[str, Any]:
    """The one choice of an answer, whole and streamed; both must say the same."""
    full = {"messages": HI, "max_tokens": 160, "temperature": 0, **body}
    if text is not None:
        full["guided_choice"] = [text]
    answer = await client.post(CHAT, json=full)
    assert answer.status_code == 200, answer.text
    [choice] = answer.json()["choices"]
    streamed: dict[str, Any] = {"content": "", "reasoning_content": "", "calls": [], "reason": None}
    events = (await client.post(CHAT, json=full | {"stream": True})).text.split("\n\n")
    for line in (event.removeprefix("data: ") for event in events if event and "[DONE]" not in event):
        for part in json.loads(line)["choices"]:
            delta = part["delta"]
            streamed["content"] += delta.get("content") or ""
            streamed["reasoning_content"] += delta.get("reasoning_content", "")
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    streamed["calls"].append([call["function"]["name"], ""])
                streamed["calls"][call["index"]][1] += call["function"]["arguments"]
            streamed["reason"] = part["finish_reason"] or streamed["reason"]
    message = choice["message"]
    calls = [[c["function"]["name"], c["function"]["arguments"]] for c in message.get("tool_calls", ())]
    whole = {
        "content": message["content"] or "",
        "reasoning_content": message.get("reasoning_content", ""),
        "calls": calls,
        "reason": choice["finish_reason"],
    }
    assert streamed == whole
    return {**whole, "usage": answer.json()["usage"], "message": message, "headers": answer.headers}


@in_loop
async def test_a_thought_that_the_template_opens(llm: LLM) -> None:
    text = "hm, easy\n</think>\n\n42"
    async with serving(llm, THINKING) as client:
        answer = await chat(client, text)
        assert (answer["reasoning_content"], answer["content"]) == ("hm, easy", "42")
        assert answer["message"]["reasoning"] == "hm, easy"
        details = answer["usage"]["completion_tokens_details"]
        assert 0 < details["reasoning_tokens"] < answer["usage"]["completion_tokens"]
        cut = await chat(client, text, max_tokens=2)
        assert (cut["content"], cut["reason"]) == ("", "length"), "a cut thought is no answer"
        assert "hm, easy".startswith(cut["reasoning_content"].strip())
        assert cut["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2

        body = {"messages": HI, "max_tokens": 60, "output_config": None}
        plain = (await client.post(MESSAGES, json=body | {"temperature": 0})).json()
        assert [block["type"] for block in plain["content"]] == ["thinking"], "the demo never ends its thought"
        assert plain["content"][0]["signature"] == ""
        told = (await client.post(RESPONSES, json={"input": "x", "max_output_tokens": 6})).json()
        assert [item["type"] for item in told["output"]] == ["reasoning"]
        assert told["usage"]["output_tokens_details"]["reasoning_tokens"] == 6


@in_loop
async def test_what_is_forced_begins_behind_the_thought(llm: LLM) -> None:
    """Tokens that are favoured close the thought as soon as the grammar lets them, which inside JSON it does not."""
    schema = {"type": "object", "properties": {"n": {"const": 1}}, "required": ["n"]} | {"additionalProperties": False}
    format = {"type": "json_schema", "json_schema": {"name": "t", "schema": schema}}
    close = llm.get_tokenizer().encode("</think>", add_special_tokens=False)
    async with serving(llm, THINKING) as client:
        bias = {str(token): 60 for token in close}
        answer = await chat(client, response_format=format, logit_bias=bias, max_tokens=40)
        if answer["reason"] == "stop":
            assert answer["content"] == '{"n": 1}'
        assert "{" not in answer["reasoning_content"], "the thought is free text"
    async with serving(llm, MAY_THINK) as client:
        answer = await chat(client, response_format=format, logit_bias={"0": -1})
        assert answer["content"] in ("", '{"n": 1}')
    async with serving(llm) as client:
        assert (await chat(client, response_format=format))["content"] == '{"n": 1}', "no model that thinks"


@in_loop
async def test_calls_in_thoughts_and_without_arguments(llm: LLM) -> None:
    async with serving(llm) as client:
        text = '<think>maybe <tool_call>{"name": "w", "arguments": {}}</tool_call> no</think>Done.'
        answer = await chat(client, text, tools=tools())
        assert (answer["content"], answer["calls"], answer["reason"]) == ("Done.", [], "stop")
        for written, expected in (('""', "{}"), ("null", "{}"), ("[1]", "[1]"), ('{"n":1,}', '{"n":1,}')):
            text = f'<tool_call>{{"name": "w", "arguments": {written}}}</tool_call>'
            assert (await chat(client, text, tools=tools()))["calls"] == [["w", expected]]
        xml = "<tool_call>\n<function=w>\n<parameter=n>\n5\n</parameter>\n</function>\n</tool_call>"
        assert (await chat(client, xml, tools=tools()))["calls"] == []
    async with serving(llm, tool_format="qwen3_xml") as client:
        answer = await chat(client, xml, tools=tools())
        assert (answer["content"], answer["calls"], answer["reason"]) == ("", [["w", '{"n": 5}']], "tool_calls")


@in_loop
async def test_one_call_ends_the_answer_where_no_more_are_wanted(llm: LLM) -> None:
    one = '<tool_call>{"name": "w", "arguments": {}}</tool_call>'
    async with serving(llm) as client:
        both = await chat(client, f"{one}\n{one}", tools=tools())
        first = await chat(client, f"{one}\n{one}", tools=tools(), parallel_tool_calls=False)
        assert (len(both["calls"]), len(first["calls"]), first["reason"]) == (2, 1, "tool_calls")
        assert first["usage"]["completion_tokens"] < both["usage"]["completion_tokens"], "the rest is not written"


SPOT = {"type": "object", "properties": {"to": {"$ref": "#/$defs/S"}}, "required": ["to"], "$defs": {"S": {"const": 1}}}
TREE = {
    "type": "object",
    "properties": {"kid": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}},
    "required": ["kid"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("format", ["hermes", "qwen3_coder", "llama3", "mistral", "mistral_list", "pythonic", "glm"])
@in_loop
async def test_forced_calls_are_written_in_the_models_form_and_keep_their_schema(llm: LLM, format: str) -> None:
    async with serving(llm, tool_format=format) as client:
        [call] = (await chat(client, tools=tools(SPOT), tool_choice={"type": "function", "function": {"name": "w"}}))[
            "calls"
        ]
        assert call == ["w", '{"to": 1}']
        null = llm.get_tokenizer().encode("null", add_special_tokens=False)
        answer = await chat(
            client, tools=tools(TREE), tool_choice="required", parallel_tool_calls=False,
            logit_bias={str(token): 80 for token in null}, max_tokens=60,
            response_format={"type": "json_object"},
        )  # fmt: skip
        assert [json.loads(arguments) for _, arguments in answer["calls"]] == [{"kid": None}]
        cut = await chat(client, tools=tools(SPOT), tool_choice="required", max_tokens=3)
        assert cut["content"] == "", "half a call is no content"


@in_loop
async def test_calls_go_back_to_templates_that_take_only_short_ids(llm: LLM) -> None:
    strict = MISTRAL + '{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id|length != 9 %}' \
        '{{ raise_exception("9") }}{% endif %}{% endfor %}{% endfor %}'  # fmt: skip
    async with serving(llm, strict) as client:
        forced = await chat(client, tools=tools(SPOT), tool_choice="required", parallel_tool_calls=False)
        [call] = forced["message"]["tool_calls"]
        assert len(call["id"]) == 9
        assert call["id"].isalnum()
        for call_id in (call["id"], "call_0123456789abcdef01234567"):
            history = [*HI, {**forced["message"], "tool_calls": [{**call, "id": call_id}]}]
            history.append({"role": "tool", "tool_call_id": call_id, "content": "rain"})
            answer = await client.post(CHAT, json={"messages": history, "max_tokens": 2, "tools": tools(SPOT)})
            assert answer.status_code == 200, answer.text


@in_loop
async def test_an_answer_that_comes_back_hits_the_cache_token_for_token(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    letters = [i for i in range(3, 200) if tokenizer.token_text(i).isalpha() and len(tokenizer.token_text(i)) == 1]
    body = {"messages": HI, "max_tokens": 96, "allowed_token_ids": letters, "ignore_eos": True, "cache_report": True}
    async with serving(llm) as client:
        for n in range(3):
            first = (await client.post(CHAT, json=body | {"seed": n, "temperature": 1})).json()
            answer = first["choices"][0]["message"]["content"]
            talk = [*HI, {"role": "assistant", "content": answer}, {"role": "user", "content": "go on"}]
            explained = (await client.post("/v1/cache/explain", json={"messages": talk})).json()
            then = (await client.post(CHAT, json={"messages": talk, "max_tokens": 2, "cache_report": True})).json()
            known = first["usage"]["total_tokens"] - 1  # the last token drawn was never computed
            report = then["kvtrove"]["cache_report"]
            assert report["reused_tokens"] == known // 16 * 16 == explained["reused_tokens"]
            assert report["kept_tokens"] == 96
            changed = [*HI, {"role": "assistant", "content": answer[:-1]}, talk[-1]]
            other = (await client.post(CHAT, json={"messages": changed, "max_tokens": 2, "cache_report": True})).json()
            assert "kept_tokens" not in other["kvtrove"]["cache_report"], "only the same text"


@in_loop
async def test_what_the_template_drops_is_said(llm: LLM) -> None:
    async with serving(llm) as client:
        answer = await chat(client, tools=tools(), max_tokens=2)
        assert answer["headers"]["x-kvtrove-warning"] == "the chat template leaves tools out of the prompt"
        assert "x-kvtrove-warning" not in (await chat(client, max_tokens=2))["headers"]
        told = (await chat(client, max_tokens=2, tempature=2, **{"grün\n": 1}, metadata={"a": "b"}))["headers"]
        assert told["x-kvtrove-warning"] == "fields not known here: gr?n?, tempature"
    async with serving(llm, LLAMA_3) as client:
        assert "x-kvtrove-warning" not in (await chat(client, tools=tools(), max_tokens=2))["headers"]
