"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from kvtrove.server.protocol.common import Count, Integer, Part, SamplingFields, Usage


class ContentPart(Part):
    """Text is what this engine reads; thoughts of earlier answers are passed over, other types refused by name."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(Part):
    name: str
    arguments: str | dict[str, Any] | None = None


class CustomCall(Part):
    name: str
    input: str = ""


class ToolCall(Part):
    id: str | None = None
    type: Literal["function", "custom"] = "function"
    function: FunctionCall | None = None
    custom: CustomCall | None = None


class ChatMessage(Part):
    """function_call, and the role `function` for what it gave: how calls were written before there were tools."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None


class FunctionSpec(Part):
    """name: letters, digits, `_`, `-` and `.`, 64 at most."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Part):
    """Functions are offered to the model; of other types none is, and the answer says so."""

    type: str = "function"
    function: FunctionSpec | None = None
    custom: dict[str, Any] | None = None


class NamedFunction(Part):
    name: str


class AllowedTools(Part):
    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]


class ToolChoice(Part):
    """One function by name, or a choice among some of the tools."""

    type: Literal["function", "custom", "allowed_tools"] = "function"
    function: NamedFunction | None = None
    custom: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


class ChatRequest(SamplingFields):
    """max_completion_tokens, max_tokens: what is left of the context unless given.

    truncation: "auto" drops whole turns from the middle of a conversation that does not fit, and says so.
    functions, function_call: the names that tools and tool_choice had before; answers then have function_call too.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[Count, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Count, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[FunctionSpec] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    truncation: Literal["auto", "disabled"] | None = None
    best_of: Annotated[Integer, Field(ge=1)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    modalities: list[Literal["text"]] | None = None
    chat_template: str | None = None

    @property
    def limit_field(self) -> str:
        return "max_completion_tokens" if self.max_completion_tokens else "max_tokens"


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
    function_call: FunctionDelta


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
