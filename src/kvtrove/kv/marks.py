"""Checkpoints of running states, found under the key of the prefix whose state they hold.

A state cannot go back, so a prefix is reused only where its state was kept: a hit over layers with states needs blocks
*and* a mark, and what lies between the last mark and the end of the blocks is computed again.

    tokens   | system, tools | message 1 | message 2 | answer .......... |
    marks                    ^           ^           ^ end of prompt     ^ follows a decode from block to block

A mark lies at the block border at or below such a place. Marks have a small memory of their own and never make anybody
wait: without room the one used longest ago leaves. After Marconi (arXiv 2411.19379), which keeps states at branch
points and at the last token; here the borders of messages join them, since those are where other requests go on.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from kvtrove.config import ConfigError, nearest
from kvtrove.kv.chain import KeyChain
from kvtrove.kv.evicted import EvictedKeys
from kvtrove.kv.spec import KVCacheSpec

AUTO, OFF = "auto", "off"
WORDS = ("end", "messages", "branches", "every")


@dataclass(slots=True, eq=False)
class Mark:
    """A checkpoint in row `row`. tokens: of the last block before it, compared on every hit.

    passing: it follows a conversation as answers grow, whose next mark takes its place.
    """

    row: int
    key: bytes
    tokens: bytes
    passing: bool = False


@dataclass(frozen=True, slots=True)
class MarkStats:
    """num, used: checkpoints that there is room for, and that are there. saved, loaded, evicted: since the start."""

    num: int
    used: int
    saved: int
    loaded: int
    evicted: int


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

    def due(self, num_tokens: int, borders: Iterable[int], found: int, size: int, most: int) -> list[int]:
        """Lengths at which a prompt of `num_tokens` is checkpointed, ascending multiples of the block size `size`.

        borders: lengths at which its messages end. found: tokens whose blocks were there already, 0 for none. At most
        `most`: the first one, which many prompts share, and the last ones.
        """
        places = [*borders] if self.messages else []
        if self.end:
            places.append(num_tokens - 1)
        if self.branches:
            places.append(found)
        if self.every:
            places += range(self.every, num_tokens, self.every)
        due = sorted({place // size * size for place in places if size <= place < num_tokens})
        return due if len(due) <= most else [due[0], *due[len(due) - most + 1 :]]


class Marks:
    """`num` checkpoints, the one used longest ago leaves first. 0: nothing is kept."""

    def __init__(self, num: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.num = num
        self.evicted = EvictedKeys(clock=clock)
        self._marks: OrderedDict[bytes, Mark] = OrderedDict()  # the one used last comes last
        self._free = list(reversed(range(num)))
        self._clock = clock
        self._saved = self._loaded = self._evicted = 0

    def __iter__(self) -> Iterator[Mark]:
        return iter(self._marks.values())

    def find(self, key: bytes, tokens: bytes) -> Mark | None:
        mark = self._marks.get(key)
        return mark if mark is not None and mark.tokens == tokens else None

    def before(self, chain: KeyChain, num_blocks: int) -> int:
        """The most leading blocks of the chain, at most `num_blocks`, whose state is there; that of none always is."""
        return next((n for n in range(num_blocks, 0, -1) if self.at(chain, n) is not None), 0)

    def age(self, chain: KeyChain, first: int, last: int) -> float | None:
        """Seconds since the state after first + 1 .. last blocks was evicted, the most that was; None if none was."""
        return self.evicted.latest(chain.keys[first:last])

    def at(self, chain: KeyChain, num_blocks: int) -> Mark | None:
        """The state of the chain's first blocks."""
        return self.find(chain.keys[num_blocks - 1], chain.tokens[num_blocks - 1]) if num_blocks else None

    def use(self, mark: Mark) -> None:
        self._marks.move_to_end(mark.key)
        self._loaded += 1

    def save(self, chain: KeyChain, num_blocks: int, before: Mark | None, *, passing: bool) -> Mark | None:
        """A place for the state of the chain's first blocks; None when that is there already, or nothing is kept.

        before: the sequence's last passing mark, whose place is taken.
        """
        key, tokens = chain.keys[num_blocks - 1], chain.tokens[num_blocks - 1]
        known = self._marks.get(key)
        if known is not None:
            self._marks.move_to_end(key)
            known.passing &= passing
        if known is not None or not self.num:
            return None
        if before is not None and before.passing and self._marks.get(before.key) is before:
            self.drop(before)
        elif not self._free:
            _, oldest = self._marks.popitem(last=False)
            self.evicted.add(oldest.key)
            self._free.append(oldest.row)
            self._evicted += 1
        mark = self._marks[key] = Mark(self._free.pop(), key, tokens, passing)
        self._saved += 1
        return mark

    def drop(self, mark: Mark) -> None:
        """Let nobody find it any more."""
        if self._marks.get(mark.key) is mark:
            del self._marks[mark.key]
            self._free.append(mark.row)

    def drop_keys(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            if key in self._marks:
                self.drop(self._marks[key])

    def clear(self) -> None:
        self.drop_keys(list(self._marks))

    def stats(self) -> MarkStats:
        return MarkStats(self.num, len(self._marks), self._saved, self._loaded, self._evicted)

    def violations(self) -> Iterator[str]:
        """I11, for `invariants`."""
        rows = [mark.row for mark in self._marks.values()]
        if sorted([*rows, *self._free]) != list(range(self.num)):
            yield f"I11: checkpoints are in rows {sorted(rows)} and rows {sorted(self._free)} are free, of {self.num}"
        for key, mark in self._marks.items():
            if key != mark.key:
                yield f"I11: the checkpoint in row {mark.row} is found under the key of another prefix"
