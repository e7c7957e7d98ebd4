"""The clients, and what each of them is asked."""

from __future__ import annotations

import json
from urllib.request import Request, urlopen

from asking import RECORDED, Feature, Pet, wants
from frameworks import (
    agents_answer,
    agents_structured,
    instructor_structured,
    langchain,
    litellm,
    llama_index,
    llama_index_stream,
    llama_index_structured,
    pydantic_ai,
    pydantic_ai_stream,
)
from sdks import CHAT, MESSAGES, RESPONSES


def recorded(name: str, path: str, last: str) -> Feature:
    def answer(url: str) -> None:
        body = json.loads((RECORDED / f"{name}.json").read_text()) | {"model": "demo"}
        request = Request(f"{url}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
        with urlopen(request, timeout=60) as response:
            text = response.read().decode()
        wants(last in text, text[-500:])

    return answer


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
        "answer": lambda url: wants(bool(pydantic_ai(url).run_sync("Hi").output)),
        "stream": pydantic_ai_stream,
        "structured": lambda url: wants(isinstance(pydantic_ai(url, output_type=Pet).run_sync("Hi").output, Pet)),
    },
    ("llama-index", "llama-index-llms-openai-like"): {
        "answer": lambda url: wants(bool(llama_index(url).complete("Hi").text)),
        "stream": llama_index_stream,
        "structured": llama_index_structured,
    },
    ("openai-agents", "openai-agents"): {"answer": agents_answer, "structured": agents_structured},
    ("Codex, a recorded request", None): {"stream": recorded("codex", "/v1/responses", "response.completed")},
    ("Claude Code, a recorded request", None): {"stream": recorded("claude_code", "/v1/messages", "message_stop")},
}
