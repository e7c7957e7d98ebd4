"""LangChain's ChatOpenAI: plain, streamed, with a tool, with a schema."""

from __future__ import annotations

from typing import Literal

import pytest
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr

from tests.server.conftest import ALICE
from tests.server.live import LiveServer


@pytest.fixture(scope="module")
def model(server: LiveServer) -> ChatOpenAI:
    key = SecretStr(ALICE)
    return ChatOpenAI(base_url=f"{server.url}/v1", api_key=key, model="demo", temperature=0, max_retries=0)


class Answer(BaseModel):
    verdict: Literal["yes", "no"]
    points: Literal[1, 2, 3]


@tool
def look_up(topic: Literal["cats", "dogs"]) -> str:
    """Looks something up."""
    return topic


def test_invoke_and_stream_say_the_same(model: ChatOpenAI) -> None:
    settings = model.bind(max_tokens=8)
    whole = settings.invoke("Hello!")
    assert whole.usage_metadata["output_tokens"] <= 8
    assert "".join(chunk.text for chunk in settings.stream("Hello!")) == whole.text


def test_a_bound_tool_is_called(model: ChatOpenAI) -> None:
    bound = model.bind_tools([look_up], tool_choice="look_up", parallel_tool_calls=False)
    [call] = bound.invoke("Look something up.").tool_calls
    assert call["name"] == "look_up"
    assert call["args"]["topic"] in ("cats", "dogs")


def test_structured_output(model: ChatOpenAI) -> None:
    answer = model.with_structured_output(Answer, method="json_schema").invoke("Well?")
    assert isinstance(answer, Answer)
