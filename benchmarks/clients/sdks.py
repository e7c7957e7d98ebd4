"""The official clients of OpenAI's and Anthropic's APIs."""

from __future__ import annotations

from typing import Any

from asking import FLAT, FUNCTION, HI, KEY, LONG, SYSTEM, TOOL, Pet, fails, wants, wants_pet


def openai_client(url: str) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def chat_answer(url: str) -> None:
    answer = openai_client(url).chat.completions.create(model="demo", messages=HI, max_tokens=8)
    wants(bool(answer.choices[0].message.content))


def chat_stream(url: str) -> None:
    chunks = openai_client(url).chat.completions.create(model="demo", messages=HI, max_tokens=8, stream=True)
    wants(bool("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)))


def chat_call(url: str) -> None:
    answer = openai_client(url).chat.completions.create(
        model="demo", messages=HI, tools=[FUNCTION], tool_choice="required", parallel_tool_calls=False, max_tokens=90
    )
    wants_pet(answer.choices[0].message.tool_calls[0].function.arguments)


def chat_result(url: str) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "paint", "arguments": "{}"}}
    messages = [*HI, {"role": "assistant", "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": "call_1", "content": "painted"})
    answer = openai_client(url).chat.completions.create(model="demo", messages=messages, tools=[FUNCTION], max_tokens=4)
    wants(answer.choices[0].message.role == "assistant")


def chat_parse(url: str) -> None:
    answer = openai_client(url).chat.completions.parse(model="demo", messages=HI, response_format=Pet, max_tokens=60)
    wants(isinstance(answer.choices[0].message.parsed, Pet))


def chat_overflow(url: str) -> None:
    import openai

    ask = openai_client(url).chat.completions.create
    fails(openai.BadRequestError, lambda: ask(model="demo", messages=LONG), "maximum context length")


def chat_usage(url: str) -> None:
    messages = [{"role": "system", "content": SYSTEM}, *HI]
    for _ in range(2):
        answer = openai_client(url).chat.completions.create(model="demo", messages=messages, max_tokens=2)
    wants(answer.usage.prompt_tokens_details.cached_tokens > 0, answer.usage)


def responses_answer(url: str) -> None:
    wants(bool(openai_client(url).responses.create(model="demo", input="Hi", max_output_tokens=8).output_text))


def responses_stream(url: str) -> None:
    with openai_client(url).responses.stream(model="demo", input="Hi", max_output_tokens=8) as events:
        wants(bool(events.get_final_response().output_text))


def responses_call(url: str) -> None:
    answer = openai_client(url).responses.create(
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
    wants(
        openai_client(url).responses.create(model="demo", input=given, tools=[FLAT], max_output_tokens=4).id[:5]
        == "resp_"
    )


def responses_parse(url: str) -> None:
    answer = openai_client(url).responses.parse(model="demo", input="Hi", text_format=Pet, max_output_tokens=60)
    wants(isinstance(answer.output_parsed, Pet))


def responses_overflow(url: str) -> None:
    import openai

    ask = openai_client(url).responses.create
    fails(openai.BadRequestError, lambda: ask(model="demo", input=LONG), "maximum context length")


def responses_usage(url: str) -> None:
    first = openai_client(url).responses.create(model="demo", input="Hi", instructions=SYSTEM, max_output_tokens=2)
    options = {"comparison_response_id": first.id}
    again = openai_client(url).responses.create(
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
