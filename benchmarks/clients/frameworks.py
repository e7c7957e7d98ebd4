"""Packages that stand between an application and an API."""

from __future__ import annotations

import asyncio
from typing import Any

from asking import FUNCTION, HI, KEY, LONG, SYSTEM, Feature, Pet, fails, wants, wants_pet
from sdks import openai_client

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

        client = instructor.from_openai(openai_client(url), mode=instructor.Mode[mode])
        settings: Any = {"model": "demo", "messages": HI, "max_tokens": 90, "max_retries": 0}
        wants(isinstance(client.chat.completions.create(response_model=Pet, **settings), Pet))

    return structured


def pydantic_ai(url: str, **more: Any) -> Any:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel("demo", provider=OpenAIProvider(base_url=f"{url}/v1", api_key=KEY))
    return Agent(model, model_settings={"max_tokens": 90}, **more)


def pydantic_ai_stream(url: str) -> None:
    async def run() -> str:
        async with pydantic_ai(url).run_stream("Hi") as answer:
            return "".join([piece async for piece in answer.stream_text(delta=True)])

    wants(bool(asyncio.run(run())))


def llama_index(url: str) -> Any:
    from llama_index.llms.openai_like import OpenAILike

    settings: Any = {"model": "demo", "api_base": f"{url}/v1", "api_key": KEY, "max_tokens": 90, "context_window": 4096}
    return OpenAILike(**settings, max_retries=0, is_chat_model=True, should_use_structured_outputs=True)


def llama_index_stream(url: str) -> None:
    from llama_index.core.llms import ChatMessage

    wants(bool("".join(piece.delta or "" for piece in llama_index(url).stream_chat([ChatMessage("Hi")]))))


def llama_index_structured(url: str) -> None:
    from llama_index.core.llms import ChatMessage

    pet = llama_index(url).as_structured_llm(Pet).chat([ChatMessage("Hi")]).raw
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
