"""What is asked of each client. A function takes the server's URL, and raises unless the answer is right."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "1")

Feature = Callable[[str], None]
KEY = "none"
HI: list[Any] = [{"role": "user", "content": "Hello there!"}]
LONG: list[Any] = [{"role": "user", "content": "hello " * 9000}]
SYSTEM = "You are kind and patient, and you like cats. " * 12
RECORDED = Path(__file__).parents[2] / "tests" / "server" / "agents"


class Pet(BaseModel):
    """A pet, so small that a model of any size can write it."""

    kind: Literal["cat", "dog"]
    tame: bool


SCHEMA = Pet.model_json_schema() | {"additionalProperties": False}
FUNCTION: Any = {"type": "function", "function": {"name": "paint", "description": "Paints.", "parameters": SCHEMA}}
FLAT: Any = {"type": "function", "name": "paint", "parameters": SCHEMA, "strict": True}
TOOL: Any = {"name": "paint", "description": "Paints.", "input_schema": SCHEMA}


def wants(condition: bool, what: object = "") -> None:
    if not condition:
        raise AssertionError(f"not as wanted: {what}")


def wants_pet(text: str | dict[str, Any]) -> None:
    Pet.model_validate(json.loads(text) if isinstance(text, str) else text)


def fails(kind: type[Exception], call: Callable[[], Any], phrase: str = "") -> None:
    """The call raises this exception, and it says the phrase."""
    try:
        call()
    except kind as error:
        wants(phrase in str(error), error)
    else:
        raise AssertionError(f"{kind.__name__} was not raised")


# ---- openai ----


def _openai(url: str) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def chat_answer(url: str) -> None:
    answer = _openai(url).chat.completions.create(model="demo", messages=HI, max_tokens=8)
    wants(bool(answer.choices[0].message.content))


def chat_stream(url: str) -> None:
    chunks = _openai(url).chat.completions.create(model="demo", messages=HI, max_tokens=8, stream=True)
    wants(bool("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)))


def chat_call(url: str) -> None:
    answer = _openai(url).chat.completions.create(
        model="demo", messages=HI, tools=[FUNCTION], tool_choice="required", parallel_tool_calls=False, max_tokens=90
    )
    wants_pet(answer.choices[0].message.tool_calls[0].function.arguments)


def chat_result(url: str) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "paint", "arguments": "{}"}}
    messages = [*HI, {"role": "assistant", "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": "call_1", "content": "painted"})
    answer = _openai(url).chat.completions.create(model="demo", messages=messages, tools=[FUNCTION], max_tokens=4)
    wants(answer.choices[0].message.role == "assistant")


def chat_parse(url: str) -> None:
    answer = _openai(url).chat.completions.parse(model="demo", messages=HI, response_format=Pet, max_tokens=60)
    wants(isinstance(answer.choices[0].message.parsed, Pet))


def chat_overflow(url: str) -> None:
    import openai

    ask = _openai(url).chat.completions.create
    fails(openai.BadRequestError, lambda: ask(model="demo", messages=LONG), "maximum context length")


def chat_usage(url: str) -> None:
    messages = [{"role": "system", "content": SYSTEM}, *HI]
    for _ in range(2):
        answer = _openai(url).chat.completions.create(model="demo", messages=messages, max_tokens=2)
    wants(answer.usage.prompt_tokens_details.cached_tokens > 0, answer.usage)


def responses_answer(url: str) -> None:
    wants(bool(_openai(url).responses.create(model="demo", input="Hi", max_output_tokens=8).output_text))


def responses_stream(url: str) -> None:
    with _openai(url).responses.stream(model="demo", input="Hi", max_output_tokens=8) as events:
        wants(bool(events.get_final_response().output_text))


def responses_call(url: str) -> None:
    answer = _openai(url).responses.create(
        model="demo", input="Hi", tools=[FLAT, {"type": "web_search"}], tool_choice="required",
        parallel_tool_calls=False, max_output_tokens=90,
    )  # fmt: skip
    wants_pet(answer.output[0].arguments)


def responses_result(url: str) -> None:
    given = [
        *HI,
        {"type": "function_call", "call_id": "c", "name": "paint", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "painted"},
    ]
    wants(_openai(url).responses.create(model="demo", input=given, tools=[FLAT], max_output_tokens=4).id[:5] == "resp_")


def responses_parse(url: str) -> None:
    answer = _openai(url).responses.parse(model="demo", input="Hi", text_format=Pet, max_output_tokens=60)
    wants(isinstance(answer.output_parsed, Pet))


def responses_overflow(url: str) -> None:
    import openai

    ask = _openai(url).responses.create
    fails(openai.BadRequestError, lambda: ask(model="demo", input=LONG), "maximum context length")


def responses_usage(url: str) -> None:
    first = _openai(url).responses.create(model="demo", input="Hi", instructions=SYSTEM, max_output_tokens=2)
    options = {"comparison_response_id": first.id}
    again = _openai(url).responses.create(
        model="demo", input="Hi", instructions=SYSTEM, max_output_tokens=2, prompt_cache_options=options
    )
    wants(again.usage.input_tokens_details.cached_tokens > 0, again.usage)
    found = again.prompt_cache_diagnostics  # older releases leave it as it came
    wants((found["type"] if isinstance(found, dict) else found.type) == "cache_hit", found)


# ---- anthropic ----


def _messages(url: str) -> Any:
    import anthropic

    return anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0).messages


def messages_answer(url: str) -> None:
    wants(bool(_messages(url).create(model="demo", messages=HI, max_tokens=8).content[0].text))


def messages_stream(url: str) -> None:
    with _messages(url).stream(model="demo", messages=HI, max_tokens=8) as events:
        wants(bool(events.get_final_text()))


def messages_call(url: str) -> None:
    hosted = {"type": "bash_20250124", "name": "bash"}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    answer = _messages(url).create(model="demo", messages=HI, max_tokens=90, tools=[TOOL, hosted], tool_choice=choice)
    wants_pet(answer.content[0].input)


def messages_result(url: str) -> None:
    use = {"type": "tool_use", "id": "t", "name": "paint", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "painted"}]}
    messages = [*HI, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    wants(_messages(url).create(model="demo", messages=messages, tools=[TOOL], max_tokens=4).role == "assistant")


def messages_parse(url: str) -> None:
    message = _messages(url).parse(model="demo", messages=HI, max_tokens=60, output_format=Pet)
    wants(isinstance(message.parsed_output, Pet))


def messages_overflow(url: str) -> None:
    import anthropic

    ask = _messages(url).create
    fails(anthropic.BadRequestError, lambda: ask(model="demo", messages=LONG, max_tokens=1), "prompt is too long")


def messages_usage(url: str) -> None:
    ask: dict[str, Any] = {"model": "demo", "system": SYSTEM, "messages": HI}
    first = _messages(url).create(**ask, max_tokens=2)
    again = _messages(url).create(**ask, max_tokens=2, diagnostics={"previous_message_id": first.id})
    wants(again.usage.cache_read_input_tokens > 0, again.usage)
    wants(again.diagnostics is None)
    total = again.usage.input_tokens + again.usage.cache_read_input_tokens
    wants(_messages(url).count_tokens(**ask).input_tokens == total)


# ---- langchain ----


def _langchain(url: str, kind: str) -> Any:
    if kind == "anthropic":
        from langchain_anthropic import ChatAnthropic

        return ChatAnthropic(model="demo", base_url=url, api_key=KEY, max_tokens=90, max_retries=0)
    from langchain_openai import ChatOpenAI

    more = {"use_responses_api": True} if kind == "responses" else {}
    return ChatOpenAI(model="demo", base_url=f"{url}/v1", api_key=KEY, max_tokens=90, max_retries=0, **more)


def langchain(kind: str) -> dict[str, Feature]:
    def answer(url: str) -> None:
        wants(bool(_langchain(url, kind).invoke("Hi").text))

    def stream(url: str) -> None:
        wants(bool("".join(str(piece.text) for piece in _langchain(url, kind).stream("Hi"))))

    def call(url: str) -> None:
        wants_pet(_langchain(url, kind).bind_tools([FUNCTION], tool_choice="any").invoke("Hi").tool_calls[0]["args"])

    def result(url: str) -> None:
        from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

        used = AIMessage("", tool_calls=[{"id": "c", "name": "paint", "args": {}}])
        talk = [HumanMessage("Hi"), used, ToolMessage("painted", tool_call_id="c")]
        wants(_langchain(url, kind).bind_tools([FUNCTION]).invoke(talk).type == "ai")

    def structured(url: str) -> None:
        method = "function_calling" if kind == "anthropic" else "json_schema"
        wants(isinstance(_langchain(url, kind).with_structured_output(Pet, method=method).invoke("Hi"), Pet))

    def overflow(url: str) -> None:
        from langchain_core.exceptions import ContextOverflowError

        fails(ContextOverflowError, lambda: _langchain(url, kind).invoke(LONG))

    def usage(url: str) -> None:
        for _ in range(2):
            said = _langchain(url, kind).invoke([("system", SYSTEM), ("human", "Hi")])
        wants(said.usage_metadata["input_token_details"]["cache_read"] > 0, said.usage_metadata)

    return {
        "answer": answer,
        "stream": stream,
        "forced call": call,
        "tool result": result,
        "structured": structured,
        "overflow": overflow,
        "usage": usage,
    }


# ---- litellm ----


def litellm(provider: str) -> dict[str, Feature]:
    def ask(url: str, messages: list[Any] = HI, **more: Any) -> Any:
        import litellm as package

        base = url if provider == "anthropic" else f"{url}/v1"
        settings = {"model": f"{provider}/demo", "api_base": base, "api_key": KEY, "num_retries": 0, "max_tokens": 90}
        return package.completion(messages=messages, **settings | more)

    def stream(url: str) -> None:
        wants(bool("".join(chunk.choices[0].delta.content or "" for chunk in ask(url, stream=True, max_tokens=8))))

    def call(url: str) -> None:
        answer = ask(url, tools=[FUNCTION], tool_choice="required", parallel_tool_calls=False)
        wants_pet(answer.choices[0].message.tool_calls[0].function.arguments)

    def result(url: str) -> None:
        used = {"id": "call_1", "type": "function", "function": {"name": "paint", "arguments": "{}"}}
        talk = [*HI, {"role": "assistant", "content": None, "tool_calls": [used]}]
        talk.append({"role": "tool", "tool_call_id": "call_1", "content": "painted"})
        wants(ask(url, talk, tools=[FUNCTION], max_tokens=4).choices[0].message.role == "assistant")

    def structured(url: str) -> None:
        wants_pet(ask(url, response_format=Pet).choices[0].message.content)

    def overflow(url: str) -> None:
        from litellm import ContextWindowExceededError

        fails(ContextWindowExceededError, lambda: ask(url, LONG, max_tokens=1))

    def usage(url: str) -> None:
        for _ in range(2):
            said = ask(url, [{"role": "system", "content": SYSTEM}, *HI], max_tokens=2)
        wants(said.usage.prompt_tokens_details.cached_tokens > 0, said.usage)

    return {
        "answer": lambda url: wants(bool(ask(url).choices[0].message.content)),
        "stream": stream,
        "forced call": call,
        "tool result": result,
        "structured": structured,
        "overflow": overflow,
        "usage": usage,
    }


# ---- instructor, pydantic-ai, openai-agents ----


def instructor_structured(mode: str) -> Feature:
    def structured(url: str) -> None:
        import instructor

        client = instructor.from_openai(_openai(url), mode=instructor.Mode[mode])
        settings: Any = {"model": "demo", "messages": HI, "max_tokens": 90, "max_retries": 0}
        wants(isinstance(client.chat.completions.create(response_model=Pet, **settings), Pet))

    return structured


def _pydantic_ai(url: str, **more: Any) -> Any:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel("demo", provider=OpenAIProvider(base_url=f"{url}/v1", api_key=KEY))
    return Agent(model, model_settings={"max_tokens": 90}, **more)


def pydantic_ai_stream(url: str) -> None:
    async def run() -> str:
        async with _pydantic_ai(url).run_stream("Hi") as answer:
            return "".join([piece async for piece in answer.stream_text(delta=True)])

    wants(bool(asyncio.run(run())))


def _llama_index(url: str) -> Any:
    from llama_index.llms.openai_like import OpenAILike

    settings: Any = {"model": "demo", "api_base": f"{url}/v1", "api_key": KEY, "max_tokens": 90, "context_window": 4096}
    return OpenAILike(**settings, max_retries=0, is_chat_model=True, should_use_structured_outputs=True)


def llama_index_stream(url: str) -> None:
    from llama_index.core.llms import ChatMessage

    wants(bool("".join(piece.delta or "" for piece in _llama_index(url).stream_chat([ChatMessage("Hi")]))))


def llama_index_structured(url: str) -> None:
    from llama_index.core.llms import ChatMessage

    pet = _llama_index(url).as_structured_llm(Pet).chat([ChatMessage("Hi")]).raw
    wants(isinstance(pet, Pet), pet)


def _agent(url: str, **more: Any) -> tuple[Any, Any]:
    import agents
    import openai

    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    model = agents.OpenAIResponsesModel(model="demo", openai_client=client)
    settings = agents.ModelSettings(max_tokens=90)
    return agents.Runner, agents.Agent(name="a", model=model, model_settings=settings, **more)


def agents_answer(url: str) -> None:
    runner, agent = _agent(url)
    wants(bool(runner.run_sync(agent, "Hi").final_output))


def agents_structured(url: str) -> None:
    runner, agent = _agent(url, output_type=Pet)
    wants(isinstance(runner.run_sync(agent, "Hi").final_output, Pet))


# ---- requests as agents send them ----


def recorded(name: str, path: str, last: str) -> Feature:
    def answer(url: str) -> None:
        import httpx

        body = json.loads((RECORDED / f"{name}.json").read_text()) | {"model": "demo"}
        response = httpx.post(f"{url}{path}", json=body, timeout=60)
        wants(response.status_code == 200, response.text)
        wants(last in response.text, response.text[-500:])

    return answer


CHAT = {
    "answer": chat_answer,
    "stream": chat_stream,
    "forced call": chat_call,
    "tool result": chat_result,
    "structured": chat_parse,
    "overflow": chat_overflow,
    "usage": chat_usage,
}
RESPONSES = {
    "answer": responses_answer,
    "stream": responses_stream,
    "forced call": responses_call,
    "tool result": responses_result,
    "structured": responses_parse,
    "overflow": responses_overflow,
    "usage": responses_usage,
}
MESSAGES = {
    "answer": messages_answer,
    "stream": messages_stream,
    "forced call": messages_call,
    "tool result": messages_result,
    "structured": messages_parse,
    "overflow": messages_overflow,
    "usage": messages_usage,
}
CLIENTS: dict[tuple[str, str | None], dict[str, Feature]] = {
    ("openai, chat", "openai"): CHAT,
    ("openai, responses", "openai"): RESPONSES,
    ("anthropic", "anthropic"): MESSAGES,
    ("langchain-openai, chat", "langchain-openai"): langchain("chat"),
    ("langchain-openai, responses", "langchain-openai"): langchain("responses"),
    ("langchain-anthropic", "langchain-anthropic"): langchain("anthropic"),
    ("litellm, openai", "litellm"): litellm("openai"),
    ("litellm, hosted_vllm", "litellm"): litellm("hosted_vllm"),
    ("litellm, anthropic", "litellm"): litellm("anthropic"),
    ("instructor, TOOLS", "instructor"): {"structured": instructor_structured("TOOLS")},
    ("instructor, JSON_SCHEMA", "instructor"): {"structured": instructor_structured("JSON_SCHEMA")},
    ("pydantic-ai", "pydantic-ai-slim"): {
        "answer": lambda url: wants(bool(_pydantic_ai(url).run_sync("Hi").output)),
        "stream": pydantic_ai_stream,
        "structured": lambda url: wants(isinstance(_pydantic_ai(url, output_type=Pet).run_sync("Hi").output, Pet)),
    },
    ("llama-index", "llama-index-llms-openai-like"): {
        "answer": lambda url: wants(bool(_llama_index(url).complete("Hi").text)),
        "stream": llama_index_stream,
        "structured": llama_index_structured,
    },
    ("openai-agents", "openai-agents"): {"answer": agents_answer, "structured": agents_structured},
    ("Codex, a recorded request", None): {"stream": recorded("codex", "/v1/responses", "response.completed")},
    ("Claude Code, a recorded request", None): {"stream": recorded("claude_code", "/v1/messages", "message_stop")},
}
