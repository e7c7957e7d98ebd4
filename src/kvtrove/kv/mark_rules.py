"""Where checkpoints of running states are made: what users write, and what follows from it for a prompt.

    tokens   | system, tools | message 1 | message 2 | answer .......... |
    marks                    ^           ^           ^ end of prompt     ^ follows a decode from block to block

A mark lies at the block border at or below such a place. After Marconi (arXiv 2411.19379), which keeps states at branch
points and at the last token; here the borders of messages join them, since those are where other requests go on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from kvtrove.config import ConfigError, nearest
from kvtrove.kv.spec import KVCacheSpec

Kind = Literal["end", "messages", "branches", "every", "answer"]
"""What lies at a mark: a word of `MarkRules`, or "answer", the border of a block in an answer."""

AUTO, OFF = "auto", "off"
WORDS = ("end", "messages", "branches", "every")
MOST_MESSAGES = 8
"""Ends of messages in a prompt that are checkpointed: the first, which many prompts share, and the last ones."""


@dataclass(frozen=True)
class MarkRules:
    """Where checkpoints are made: at the end of prompts and answers, at the end of messages, where a second request
    left the way of the first, and every so many tokens of a prompt (0: not).
    """

    end: bool = True
    messages: bool = True
    branches: bool = True
    every: int = 0

    @classmethod
    def parse(cls, text: str, spec: KVCacheSpec) -> MarkRules:
        """auto, off, or words such as "end,messages,every:4096". "auto" is all places, and every block where its
        checkpoint is no larger than what is kept of its tokens. ConfigError naming the word that is wrong.
        """
        if text == AUTO:
            cheap = 0 < spec.mark_bytes <= spec.block_bytes * len(spec.groups)
            return cls(every=spec.block_size if cheap else 0)
        rules = dict.fromkeys(WORDS, 0)
        for word in [] if text == OFF else text.split(","):
            name, colon, value = word.strip().partition(":")
            if name not in WORDS:
                known = f"{AUTO}, {OFF}, or of end, messages, branches, every:4096"
                raise ConfigError(
                    f"marks: {name!r} is not known{nearest(name, (*WORDS, AUTO, OFF))}; there are {known}"
                )
            if (name == "every") != bool(colon) or (colon and not (value.isdecimal() and int(value))):
                example = "every:4096" if name == "every" else name
                raise ConfigError(f"marks: {word.strip()!r} is not understood; write {example}")
            rules[name] = int(value) if colon else 1
        return cls(bool(rules["end"]), bool(rules["messages"]), bool(rules["branches"]), rules["every"])

    def due(self, num_tokens: int, borders: Iterable[int], found: int, size: int) -> dict[int, Kind]:
        """Length at which a prompt of `num_tokens` is checkpointed -> why; multiples of the block size `size`.

        borders: lengths at which its messages end. found: tokens whose blocks were there already, 0 for none.
        """
        places: dict[int, Kind] = (
            dict.fromkeys(range(self.every, num_tokens, self.every), "every") if self.every else {}
        )
        if self.messages:
            ends = [*borders]
            places |= dict.fromkeys(ends[:1] + ends[1:][1 - MOST_MESSAGES :], "messages")
        if self.end:
            places[num_tokens - 1] = "end"
        if self.branches:
            places[found] = "branches"
        return {place // size * size: kind for place, kind in places.items() if size <= place < num_tokens}
