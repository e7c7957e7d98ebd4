"""POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Discriminator, Field, Tag
from typing_extensions import TypedDict

from kvtrove.server.protocol.common import Count, Integer, SamplingFields, TokenId, Usage


def _kind(prompt: Any) -> str:
    """Which form of prompt it is: validating a million token ids against every form takes its time."""
    first = prompt[0] if isinstance(prompt, list) and prompt else None
    if isinstance(first, str):
        return "texts"
    return "lists" if isinstance(first, list) else "ids" if isinstance(prompt, list) else "text"


Prompts = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[TokenId], Tag("ids")]
    | Annotated[list[str], Tag("texts")]
    | Annotated[list[list[TokenId]], Tag("lists")],
    Discriminator(_kind),
]


class CompletionRequest(SamplingFields):
    """max_tokens: 16 unless given, as OpenAI has it; 0 only together with echo."""

    prompt: Prompts
    max_tokens: Count | None = 16
    echo: bool | None = None
    logprobs: Count | None = None
    best_of: Annotated[Integer, Field(ge=1)] | None = None
    suffix: str | None = None
    add_special_tokens: bool | None = None


class CompletionLogprobs(TypedDict):
    """Lists of equal length, one entry per token. The first token of an echoed prompt has no probability: null."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[int | str | None]


class Completion(TypedDict):
    """The answer, and in a stream every chunk of it."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]
    kvtrove: NotRequired[dict[str, Any]]
