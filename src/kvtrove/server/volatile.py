"""Values that change from request to request without meaning to: what they look like, and how to keep them from the
head of a prompt, where they cost everything behind them its place in the cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

BILLING = "x-anthropic-billing-header"  # the first system block of Claude Code; it changes with every request
MAX_LINE = 200  # characters; longer lines say more than a value

_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
VOLATILE = {
    "uuid": re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"),
    "date": re.compile(
        r"\b\d{4}-\d\d-\d\d\b|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b|"
        rf"\b{_MONTH}\.? \d{{1,2}}\b|\b\d{{1,2}}\.? {_MONTH}"
    ),
    "time": re.compile(r"\b\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?"),
    "nonce": re.compile(r"\b(?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{12,}"),
    "counter": re.compile(r"\b\d+\b"),
}
"""Most specific first."""

Message = Mapping[str, Any]


def kind_of(line: str) -> str | None:
    """What of a line changes from request to request, if something looks so. A bare number does not: most stay."""
    if line.startswith(BILLING):
        return "billing header"
    kinds = (kind for kind, pattern in VOLATILE.items() if kind != "counter" and pattern.search(line))
    return next(kinds, None) if len(line) <= MAX_LINE else None


def moved_back(messages: Sequence[Message]) -> tuple[tuple[Message, ...], list[str]]:
    """The conversation with the volatile lines that open its system message at the end of the newest message that is
    no answer, and the kinds of those lines. Unchanged when nothing of the system message would stay.

        system: Today is 2026-11-29.\\nYou are ...    ->    system: You are ...
        user:   Hi                                         user:   Hi\\n\\nToday is 2026-11-29.
    """
    messages = tuple(messages)
    target = next((i for i in range(len(messages) - 1, 0, -1) if messages[i]["role"] in ("user", "tool")), None)
    if target is None or messages[0]["role"] != "system" or not isinstance(messages[0]["content"], str):
        return messages, []
    lines = messages[0]["content"].split("\n")
    head = list(takewhile(kind_of, lines))
    rest = "\n".join(lines[len(head) :]).lstrip("\n")
    if not head or not rest or not isinstance(messages[target]["content"], str):
        return messages, []
    changed = {0: rest, target: f"{messages[target]['content']}\n\n" + "\n".join(head)}
    kinds = [str(kind_of(line)) for line in head]
    return tuple({**m, "content": changed[i]} if i in changed else m for i, m in enumerate(messages)), kinds
