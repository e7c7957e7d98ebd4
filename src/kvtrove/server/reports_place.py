"""Where two prompts part, in words: the message, the text around it, and whether something volatile stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from kvtrove.server.reports_recent import Tokens
from kvtrove.server.volatile import VOLATILE
from kvtrove.text.detokenizer import IncrementalDetokenizer
from kvtrove.text.tokenizer import Tokenizer

SHOWN = 12  # tokens on either side of a divergence
SEARCHED = 24  # tokens on either side in which volatile values are looked for
MAX_CHARS = 200  # of them, since a token may be long
MAX_MISSES = 16  # messages that the template has changed, after which the search for the others ends


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is known of how a prompt was made. text: the rendered prompt; messages: as the template saw them."""

    text: str | None = None
    messages: Sequence[Mapping[str, Any]] = ()
    tool_names: Sequence[str] = ()


def around(tokenizer: Tokenizer, tokens: Tokens, position: int, size: int = SHOWN) -> tuple[str, str]:
    """The text of `size` tokens before `position` and of as many from there on."""
    before, after = tokens[max(0, position - size) : position].tolist(), tokens[position : position + size].tolist()
    return _decode(tokenizer, before), tokenizer.decode_after(before, after) if after else ""


def pieces(tokenizer: Tokenizer, tokens: Tokens) -> list[str]:
    """The text of each token; what is only a part of a character is empty, and the token that completes it has all."""
    text, found = IncrementalDetokenizer(tokenizer, [], skip_special_tokens=False), []
    for token in tokens.tolist():
        before = len(text.text)
        text.push([token])
        found.append(text.text[before:])
    return found


def volatile(before: str, here: str, earlier: str) -> str | None:
    """The kind of value that both texts have, each its own, where `before` goes on differently."""
    before = before[-MAX_CHARS:]
    a, b = before + here[:MAX_CHARS], before + earlier[:MAX_CHARS]
    at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    for kind, pattern in VOLATILE.items():
        mine, theirs = _match_over(pattern, a, at), _match_over(pattern, b, at)
        if mine and theirs and mine.start() == theirs.start() and mine[0] != theirs[0]:
            return kind
    return None


def _match_over(pattern: re.Pattern[str], text: str, at: int) -> re.Match[str] | None:
    """The match that contains or ends at character `at`."""
    return next((m for m in pattern.finditer(text) if m.start() <= at <= m.end()), None)


def place(tokenizer: Tokenizer, conversation: Conversation, tokens: Tokens, position: int) -> str | None:
    """`system[0]`, `tools`, `messages[3]` or `template` (what the chat template itself writes at the end).

    Indices count the messages as the template saw them; `system[0]` is the first one of role system. None without
    messages, and where the template has changed what was sent too much to tell.
    """
    if conversation.text is None or not conversation.messages:
        return None
    at = _character(tokenizer, conversation.text, tokens, position)
    previous_end, index = 0, -1
    for index, start, end in _spans(conversation.text, conversation.messages):
        if at < start:
            gap = conversation.text[previous_end:start]
            if _before_the_talk(conversation.messages, index) and _mentions(gap, conversation.tool_names):
                return "tools"
            return _name(conversation.messages, index)
        if at < end:
            return _name(conversation.messages, index)
        previous_end = end
    return "template" if index == len(conversation.messages) - 1 else None


def _spans(text: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, int, int]]:
    """(index, start, end) in characters of every message whose content stands in the prompt as it was sent."""
    cursor = misses = 0
    for index, message in enumerate(messages):
        content = message.get("content")
        wanted = content.strip() if isinstance(content, str) else ""
        if not wanted:
            continue
        start = text.find(wanted, cursor)
        if start >= 0:
            cursor = start + len(wanted)
            yield index, start, cursor
        elif (misses := misses + 1) > MAX_MISSES:  # each one reads the text to its end
            return


def _character(tokenizer: Tokenizer, text: str, tokens: Tokens, position: int) -> int:
    """Index in `text` at which token `position` begins: where its surroundings stand, if they stand there only once."""
    for size in (SHOWN, 16 * SHOWN):
        before, after = around(tokenizer, tokens, position, size)
        found = text.find(before + after)
        if found >= 0 and text.find(before + after, found + 1) < 0:
            return found + len(before)
    return len(_decode(tokenizer, tokens[:position].tolist()))


def _decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


def _before_the_talk(messages: Sequence[Mapping[str, Any]], index: int) -> bool:
    """Templates write the tools before the first message that is not the system's."""
    return all(message.get("role") == "system" for message in messages[:index])


def _mentions(text: str, names: Sequence[str]) -> bool:
    return any(name in text for name in names)


def _name(messages: Sequence[Mapping[str, Any]], index: int) -> str:
    if messages[index].get("role") != "system":
        return f"messages[{index}]"
    return f"system[{sum(message.get('role') == 'system' for message in messages[:index])}]"
