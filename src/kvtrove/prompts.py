"""What callers may pass as prompts, in the one form the engine takes.

"text"                              one prompt
[1, 2, 3]                           one prompt of token ids
{"prompt": "text"}                  the same as dictionaries,
{"prompt_token_ids": [1, 2, 3]}     each with an optional "cache_salt"
["text", [1, 2], {"prompt": ...}]   a list of any of these
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kvtrove.config import nearest
from kvtrove.request import RequestError

PROMPT_KEYS = ("prompt", "prompt_token_ids", "cache_salt")

PromptLike = str | Sequence[int] | Mapping[str, Any]


class Encoder(Protocol):
    """The part of a tokenizer that prompts need."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt. `text` is None when it came as token ids; prompts share cached blocks within one `salt` only."""

    token_ids: list[int]
    text: str | None = None
    salt: str = ""


def read_prompts(prompts: PromptLike | Sequence[PromptLike], tokenizer: Encoder) -> list[Prompt]:
    """One Prompt per prompt, in order. RequestError names the entry that cannot be read."""
    if isinstance(prompts, (str, Mapping)) or _is_token_ids(prompts):
        return [_read(prompts, tokenizer, "prompt")]
    if not isinstance(prompts, Sequence):
        raise RequestError(_unreadable(prompts, "prompts"), "prompt")
    return [_read(prompt, tokenizer, f"prompts[{i}]") for i, prompt in enumerate(prompts)]


def _read(prompt: Any, tokenizer: Encoder, where: str) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(tokenizer.encode(prompt), prompt)
    if isinstance(prompt, Mapping):
        return _read_mapping(prompt, tokenizer, where)
    if _is_token_ids(prompt) or (isinstance(prompt, (list, tuple)) and not prompt):
        return Prompt(list(prompt))
    raise RequestError(_unreadable(prompt, where), "prompt")


def _read_mapping(prompt: Mapping[str, Any], tokenizer: Encoder, where: str) -> Prompt:
    for key in prompt:
        if key not in PROMPT_KEYS:
            raise RequestError(f"{where}: unknown key {key!r}{nearest(str(key), PROMPT_KEYS)}", "prompt")
    text, ids, salt = prompt.get("prompt"), prompt.get("prompt_token_ids"), prompt.get("cache_salt") or ""
    if not isinstance(salt, str):
        raise RequestError(f"{where}: cache_salt must be a string, not {type(salt).__name__}", "cache_salt")
    if ids is not None:
        read = _read(ids, tokenizer, f"{where}: prompt_token_ids")
        return Prompt(read.token_ids, text if isinstance(text, str) else None, salt)
    if not isinstance(text, str):
        raise RequestError(f"{where}: give 'prompt' (text) or 'prompt_token_ids' (a list of token ids)", "prompt")
    return Prompt(tokenizer.encode(text), text, salt)


def _is_token_ids(prompt: Any) -> bool:
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and len(prompt) > 0
        and all(isinstance(i, int) and not isinstance(i, bool) for i in prompt)
    )


def _unreadable(prompt: Any, where: str) -> str:
    return (
        f"{where}: cannot read {type(prompt).__name__} as a prompt; "
        "give text, a list of token ids, {'prompt': text} or {'prompt_token_ids': ids}"
    )
