"""What changed in a conversation since an earlier answer: the question that the providers' cache diagnostics answer.

They compare how two requests are built, whatever the cache did with them: a report says what it did, and why.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

Part = Literal["system", "tools", "messages"]
TAIL = 32  # tokens: templates end a prompt in other words than those that precede the answer in the next one


@dataclass(frozen=True, slots=True)
class Outline:
    """Fingerprints of what a prompt is made of, without its text. system: the messages that open the conversation."""

    system: str
    tools: str
    messages: tuple[str, ...]

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]], tools: Any) -> Outline:
        system = list(takewhile(lambda message: message["role"] == "system", messages))
        return cls(_digest(system), _digest(tools), tuple(_digest(message) for message in messages[len(system) :]))

    def change(self, earlier: Outline) -> Part | None:
        """The first part that differs; None when this conversation only goes on from the earlier one."""
        if self.system != earlier.system:
            return "system"
        if self.tools != earlier.tools:
            return "tools"
        return "messages" if self.messages[: len(earlier.messages)] != earlier.messages else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A prompt beside that of an earlier answer. found: the earlier one is still known. change: the first part that
    differs. common, missed: tokens of the earlier prompt that are the same, and that could have been but are not.
    """

    found: bool
    change: Part | None = None
    common: int = 0
    missed: int = 0

    @property
    def explained(self) -> bool:
        """False when the prompts differ though messages and tools are the same: by other fields of the requests."""
        return self.change is not None or self.missed <= TAIL


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()
