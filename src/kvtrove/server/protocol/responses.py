"""POST /v1/responses: OpenAI's newer API, without memory on the server: every request brings its whole conversation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from kvtrove.server.protocol.common import CacheFields, Count, Integer, Part, Seed


class InputItem(Part):
    """A message (with or without `type`), a call of a function, custom tool or local shell, or what it gave.

    Items about what a provider ran or stored are passed over, and the answer says so.
    """

    type: str | None = None
    role: str | None = None
    content: Any = None
    call_id: str | None = None
    id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: Any = None
    input: Any = None
    action: Any = None
    output: Any = None


class FlatTool(Part):
    """A function, or a namespace with functions. Of other types none is offered, and the answer says so.

    name: letters, digits, `_`, `-` and `.`, 64 at most.
    """

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    tools: list[FlatTool] | None = None


class FlatToolChoice(Part):
    """A tool by its type and name, or (`allowed_tools`) a choice among some of the tools."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[dict[str, Any]] | None = None


class TextFormat(Part):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(Part):
    format: TextFormat | None = None


class ConversationFields(CacheFields):
    """What the route that answers and the route that counts read. conversation, prompt, previous_response_id: name
    what a server remembers; this one remembers nothing, and refuses them.
    """

    prompt_field: ClassVar[str] = "input"

    model: str | None = None
    input: str | Annotated[list[InputItem], Field(min_length=1)] | None = None
    instructions: str | None = None
    tools: list[FlatTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None


class ResponsesRequest(ConversationFields):
    """`store` is accepted and changes nothing. top_logprobs: asked for by include message.output_text.logprobs."""

    max_output_tokens: Annotated[Count, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Integer | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: Seed | None = None
    ignore_eos: bool | None = None
    include: list[str] | None = None
    top_logprobs: Count | None = None
    background: bool | None = None
    stream: bool | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None

    @property
    def limit_field(self) -> str:
        return "max_output_tokens"

    @property
    def compared_with(self) -> str | None:
        """The answer with whose request this one is to be compared, without the prefix of its id."""
        asked = self.prompt_cache_options and self.prompt_cache_options.comparison_response_id
        return asked.removeprefix("resp_") if asked else None


class InputTokensDetails(TypedDict):
    """cache_write_tokens: of those that are charged, which none is here."""

    cached_tokens: int
    cache_write_tokens: int


class ReasoningTokens(TypedDict):
    reasoning_tokens: int


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class ResponseObject(TypedDict):
    """The answer. `output`: messages and function calls in the order in which they were written."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[dict[str, Any]]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_p: float
    truncation: str
    usage: ResponseUsage | None
    prompt_cache_diagnostics: NotRequired[dict[str, Any]]
    kvtrove: NotRequired[dict[str, Any]]


class InputTokens(TypedDict):
    object: Literal["response.input_tokens"]
    input_tokens: int
