"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from kvtrove.server.protocol.common import Count, Part, SamplingFields, Usage

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class ContentPart(Part):
    """Text is what this engine reads; other types are refused by name."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(Part):
    name: str
    arguments: str = ""


class ToolCall(Part):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Part):
    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class FunctionSpec(Part):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Part):
    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(Part):
    name: str


class NamedTool(Part):
    type: Literal["function"] = "function"
    function: NamedFunction


class ChatRequest(SamplingFields):
    """max_completion_tokens, max_tokens: what is left of the context unless given.

    truncation: "auto" drops whole turns from the middle of a conversation that does not fit, and says so.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[Count, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Count, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[TokenLogprob]


class FunctionDelta(TypedDict, total=False):
    name: str
    arguments: str


class ToolCallDelta(TypedDict, total=False):
    """In a stream `index` says which call grows; `id`, `type` and the name come with its first piece."""

    index: int
    id: str
    type: Literal["function"]
    function: FunctionDelta


class ChatAnswer(TypedDict, total=False):
    """A message, or in a stream what is added to it. A thought comes under both names that clients look for."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str
    reasoning: str
    refusal: None
    tool_calls: list[ToolCallDelta]


class ChatChoice(TypedDict):
    index: int
    message: NotRequired[ChatAnswer]
    delta: NotRequired[ChatAnswer]
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: NotRequired[int | str | None]


class ChatCompletion(TypedDict):
    """The answer ("chat.completion"), or a chunk of it ("chat.completion.chunk")."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: NotRequired[Usage | None]
    kvtrove: NotRequired[dict[str, Any]]
