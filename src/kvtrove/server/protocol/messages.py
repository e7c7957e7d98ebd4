"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from kvtrove.server.protocol.common import CacheControl, CacheFields, Count, Integer, Part


class Block(Part):
    """text, thinking, tool_use, tool_result, document (of text); what servers ran is passed over, images are refused.

    content, source: read where the block's type has them.
    """

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: Any = None
    tool_use_id: str | None = None
    content: Any = None
    source: Any = None
    cache_control: CacheControl | None = None


class InputMessage(Part):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class MessagesTool(Part):
    """A tool of a type other than `custom` is one that Anthropic trained or runs: it is left out.

    name: letters, digits, `_`, `-` and `.`, 128 at most.
    """

    type: str | None = None
    name: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    cache_control: CacheControl | None = None


class MessagesToolChoice(Part):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(Part):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Part):
    format: OutputFormat | None = None


class DiagnosticsFields(Part):
    """previous_message_id: the answer with whose request this one is compared."""

    previous_message_id: str | None = None


class ConversationFields(CacheFields):
    """What both routes read. cache_control: the whole conversation is kept."""

    model: str | None = None
    messages: Annotated[list[InputMessage], Field(min_length=1)]
    system: str | list[Block] | None = None
    tools: list[MessagesTool] | None = None
    tool_choice: MessagesToolChoice | None = None
    cache_control: CacheControl | None = None


class MessagesRequest(ConversationFields):
    """max_tokens: 0 only fills the cache with the prompt; one past the context means all of it, and an answer that
    fills it ends with `model_context_window_exceeded`. A last message of the assistant's is continued.
    """

    max_tokens: Count
    output_config: OutputConfig | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Integer | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    diagnostics: DiagnosticsFields | None = None

    @property
    def compared_with(self) -> str | None:
        """The answer with whose request this one is to be compared, without the prefix of its id."""
        asked = self.diagnostics and self.diagnostics.previous_message_id
        return asked.removeprefix("msg_") if asked else None


class MessagesUsage(TypedDict):
    """cache_read_input_tokens were reused, cache_creation_input_tokens computed and marked by `cache_control`,
    input_tokens computed and not marked; together they are the prompt.
    """

    input_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    output_tokens: int


class TextBlock(TypedDict):
    type: Literal["text"]
    text: str


class ThinkingBlock(TypedDict):
    """What the model thought before its answer. `signature` is empty: nobody here checks one."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlock(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: Any


class MessageAnswer(TypedDict):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[ThinkingBlock | TextBlock | ToolUseBlock]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessagesUsage
    diagnostics: NotRequired[dict[str, Any] | None]
    kvtrove: NotRequired[dict[str, Any]]


class TokenCount(TypedDict):
    input_tokens: int
