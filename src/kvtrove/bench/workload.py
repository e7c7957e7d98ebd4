"""What is asked: conversations of turns, made synthetically or read from a file of prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from kvtrove.bench.settings import Span, Workload
from kvtrove.bench.words import Words
from kvtrove.config import ConfigError

DEFAULT_OUTPUT_TOKENS = 128

# Keys of synthetic text: spaces of 2**32 keys each, so that a prefix never equals a turn or a block of a trace.
PREFIX_KEYS, TURN_KEYS, BLOCK_KEYS, TAIL_KEYS = (space << 32 for space in range(4))


@dataclass(frozen=True, slots=True)
class Passage:
    """Synthetic text: `tokens` long, equal to every other passage of this key up to the shorter one's length."""

    key: int
    tokens: int


@dataclass(frozen=True)
class Blocks:
    """A prompt of a trace, `tokens` long: block i is the same text for every prompt with this id.

        | ids[0] | ids[1] | ... | what is left of the last block, or a tail that is nobody else's |

    ids: of blocks of block_size tokens, from the beginning; may cover less than the prompt. own: number of the prompt.
    """

    ids: Sequence[int]
    block_size: int
    tokens: int
    own: int

    def passages(self) -> tuple[Passage, ...]:
        found = []
        left = self.tokens
        for block in self.ids:
            if left > 0:
                found.append(Passage(BLOCK_KEYS + block, min(left, self.block_size)))
                left -= self.block_size
        return (*found, Passage(TAIL_KEYS + self.own, left)) if left > 0 else tuple(found)


Content = str | tuple[Passage, ...] | Blocks


@dataclass(frozen=True)
class Message:
    role: str
    content: Content


@dataclass(frozen=True)
class Turn:
    """One request: what the user says next. output_tokens: None sets no limit. think_time: seconds to wait first."""

    content: Content
    output_tokens: int | None
    think_time: float = 0.0


@dataclass(frozen=True)
class Conversation:
    """Turns that follow each other, each as soon as the answer before it has ended and its think time has passed.

    opening: messages in front of the first turn. remembers: each prompt repeats the conversation so far; otherwise each
    turn is a whole prompt. arrival: seconds into the trace, for workloads that have times of their own.
    """

    turns: tuple[Turn, ...]
    opening: tuple[Message, ...] = ()
    remembers: bool = True
    arrival: float | None = None


@dataclass(frozen=True)
class Writer:
    """Writes passages out as text. overhead: tokens of every prompt beside its text (BOS, chat template)."""

    words: Words
    tokens_per_word: float
    overhead: int = 0

    def write(self, content: Content, spare: int = 0) -> str:
        """The text; `spare` tokens are left off its end for what else the prompt holds."""
        if isinstance(content, str):
            return content
        *whole, last = content.passages() if isinstance(content, Blocks) else content
        passages = [*whole, Passage(last.key, max(1, last.tokens - spare))]
        return " ".join(self.words.text(p.key, max(1, round(p.tokens / self.tokens_per_word))) for p in passages)


def synthetic(workload: Workload, random: Random) -> Iterator[Conversation]:
    """Endless random text: prefixes in turn, lengths drawn from their ranges, no two turns alike."""
    output = workload.output_tokens or Span(DEFAULT_OUTPUT_TOKENS, DEFAULT_OUTPUT_TOKENS)
    key = TURN_KEYS
    number = 0
    while True:
        turns = []
        for turn in range(workload.turns):
            passage = Passage(key, random.randint(workload.input_tokens.low, workload.input_tokens.high))
            think_time = workload.think_time if turn else 0.0
            turns.append(Turn((passage,), random.randint(output.low, output.high), think_time))
            key += 1
        prefix = Passage(PREFIX_KEYS + number % workload.prefixes, workload.prefix_tokens)
        yield Conversation(tuple(turns), (Message("system", (prefix,)),) if prefix.tokens else ())
        number += 1


def own_prompts(path: str, workload: Workload, random: Random) -> list[Conversation]:
    """The prompts of a JSONL file; the format is in docs/benchmarking.md. ConfigError names the line that is wrong."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts: cannot read {path}: {error}") from error
    conversations = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            conversations.append(_read_line(line, f"prompts: line {number} of {path}", workload, random))
    if not conversations:
        raise ConfigError(f'prompts: {path} is empty; write one {{"prompt": "..."}} per line')
    return conversations


def _read_line(line: str, where: str, workload: Workload, random: Random) -> Conversation:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where} is no JSON: {error}") from error
    if isinstance(entry, str):
        entry = {"prompt": entry}
    kinds = [kind for kind in ("prompt", "messages", "turns") if isinstance(entry, dict) and entry.get(kind)]
    if len(kinds) != 1:
        raise ConfigError(f"{where} needs exactly one of: a string, 'prompt', 'messages', 'turns'")
    opening, said = _said(entry, kinds[0], where)
    output_tokens = _output_tokens(entry, where, workload, random)
    turns = [Turn(text, output_tokens, workload.think_time if index else 0.0) for index, text in enumerate(said)]
    return Conversation(tuple(turns), opening)


def _said(entry: dict[str, Any], kind: str, where: str) -> tuple[tuple[Message, ...], Sequence[str]]:
    """(messages in front, what the user says in each turn)."""
    value = entry[kind]
    match kind, value:
        case "prompt", str():
            return (), [value]
        case "turns", list() if all(isinstance(text, str) for text in value):
            return (), value
        case "messages", list() if all(_is_message(message) for message in value):
            *before, last = [Message(message["role"], message["content"]) for message in value]
            if last.role == "user":
                return tuple(before), [str(last.content)]
            raise ConfigError(f"{where}: the last message must be the user's, it is the {last.role}'s")
    raise ConfigError(
        f"{where}: 'prompt' is a text, 'turns' a list of texts, "
        "'messages' a list of objects whose 'role' and 'content' are texts"
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("role", "content"))


def _output_tokens(entry: dict[str, Any], where: str, workload: Workload, random: Random) -> int | None:
    """The line's own length of the answer, else the setting's, else none."""
    own = entry.get("output_tokens", entry.get("max_tokens"))
    if own is None:
        return (
            random.randint(workload.output_tokens.low, workload.output_tokens.high) if workload.output_tokens else None
        )
    if not isinstance(own, int) or isinstance(own, bool) or own < 1:
        raise ConfigError(f"{where}: 'output_tokens' is {own!r}; it must be a whole number of at least 1")
    return own
