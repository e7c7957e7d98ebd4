"""Prompts as requests write them: one text or many, token ids or lists of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from kvtrove.prompts import Prompt
from kvtrove.server.errors import refused
from kvtrove.server.service import Service


async def read_prompts(
    given: str | Sequence[Any], service: Service, param: str, *, special: bool, keep: int | None = None
) -> list[Prompt]:
    """Of the field `param`. ApiError for none, too many, or an empty one. keep: only the last so many tokens."""
    listed: Sequence[Any] = [given] if _is_single(given) else given
    if not listed:
        raise refused(f"{param}: the list is empty; give at least one", param)
    service.refuse_too_many(len(listed), param)

    def read() -> list[Prompt]:
        encode = partial(service.encode, param=param, add_special_tokens=special)
        prompts = [encode(p) if isinstance(p, str) else Prompt(p) for p in listed]
        return prompts if keep is None else [Prompt(p.token_ids[-keep:] if keep else [], p.text) for p in prompts]

    prompts = await service.in_pool(read)
    if not all(prompt.token_ids for prompt in prompts):
        raise refused(f"{param}: it is empty; give at least one token", param)
    return prompts


def _is_single(given: str | Sequence[Any]) -> bool:
    return isinstance(given, str) or bool(given and isinstance(given[0], int))
