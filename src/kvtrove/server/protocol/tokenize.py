"""POST /tokenize, POST /detokenize, GET /tokenizer_info: names as in vLLM."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from kvtrove.server.protocol.chat import ChatMessage, Tool
from kvtrove.server.protocol.common import Body, TokenId


class TokenizeRequest(Body):
    """Either `prompt`, or `messages` (rendered by the chat template, which writes its own special tokens)."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class Tokenized(TypedDict):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: NotRequired[list[str] | None]


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: list[TokenId]


class Detokenized(TypedDict):
    prompt: str


class TokenizerInfo(TypedDict):
    """Special tokens as text, null where the model has none, and the chat template's source."""

    tokenizer_class: str
    vocab_size: int
    max_model_len: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None
