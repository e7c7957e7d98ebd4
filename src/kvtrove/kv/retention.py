"""Which tokens are live at length n?

`Retention.live(n)` is the one answer that four parts of the engine read: the manager frees what is not live, a prefix
hit at n needs exactly the blocks that are, the planner's worst case is its largest value, and the kernel's mask is
`live(position) + the token itself`. Metadata only: no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


class Retention(Protocol):
    """A rule of attention that a token's position decides: a frozen dataclass.

    `id` ("window=256") is its recipe's word, and stands for it in fingerprints.
    """

    @property
    def id(self) -> str: ...

    def live(self, n: int) -> tuple[range, ...]:
        """Positions < n that the token at position n reads: ascending, disjoint, half-open ranges, none empty."""
        ...

    def kept(self) -> int | None:
        """Most tokens that are live at once, the newest included; None when all are."""
        ...

    def steep(self, length: int) -> tuple[int, ...]:
        """Lengths below `length` at which most tokens are live: where a sequence holds most blocks."""
        ...

    def problems(self) -> list[str]:
        """Why such a rule cannot be; empty when it can."""
        ...


def _too_small(least: int, **numbers: int) -> list[str]:
    return [f"{name} {value} must be at least {least}" for name, value in numbers.items() if value < least]


@dataclass(frozen=True)
class Full:
    """Every token reads every earlier one."""

    def live(self, n: int) -> tuple[range, ...]:
        return _ranges((0, n))

    @property
    def id(self) -> str:
        return "full"

    def kept(self) -> int | None:
        return None

    def steep(self, length: int) -> tuple[int, ...]:
        return (max(0, length - 1),)

    def problems(self) -> list[str]:
        return []


@dataclass(frozen=True)
class SlidingWindow:
    """A token reads itself and the `window - 1` before it (the convention of Hugging Face and vLLM)."""

    window: int

    def live(self, n: int) -> tuple[range, ...]:
        return _ranges((max(0, n - self.window + 1), n))

    @property
    def id(self) -> str:
        return f"window={self.window}"

    def kept(self) -> int | None:
        return self.window

    def steep(self, length: int) -> tuple[int, ...]:
        return (max(0, length - 1),)

    def problems(self) -> list[str]:
        return _too_small(1, window=self.window)


@dataclass(frozen=True)
class SinksAndWindow:
    """The first `sinks` tokens and a sliding window (StreamingLLM, arXiv 2309.17453, with true positions)."""

    sinks: int
    window: int

    def live(self, n: int) -> tuple[range, ...]:
        start = max(0, n - self.window + 1)
        return _ranges((0, min(self.sinks, start)), (start, n))

    @property
    def id(self) -> str:
        return f"sinks={self.sinks}+window={self.window}"

    def kept(self) -> int | None:
        return self.sinks + self.window

    def steep(self, length: int) -> tuple[int, ...]:
        return (max(0, length - 1),)

    def problems(self) -> list[str]:
        return _too_small(0, sinks=self.sinks) + _too_small(1, window=self.window)


@dataclass(frozen=True)
class ChunkedLocal:
    """A token reads its own chunk of `chunk` tokens (Llama 4)."""

    chunk: int

    def live(self, n: int) -> tuple[range, ...]:
        return _ranges((n // self.chunk * self.chunk, n))

    @property
    def id(self) -> str:
        return f"chunk={self.chunk}"

    def kept(self) -> int | None:
        return self.chunk

    def steep(self, length: int) -> tuple[int, ...]:
        """The end, and the last token of a full chunk."""
        last = max(0, length - 1)
        return last, max(0, last // self.chunk * self.chunk - 1)

    def problems(self) -> list[str]:
        return _too_small(1, chunk=self.chunk)


@dataclass(frozen=True)
class Beginning:
    """Of the tokens that `of` reads, those among the first `tokens`: blocks behind them are never held."""

    of: Retention
    tokens: int

    def live(self, n: int) -> tuple[range, ...]:
        return _ranges(*((span.start, min(span.stop, self.tokens)) for span in self.of.live(n)))

    @property
    def id(self) -> str:
        return f"first={self.tokens}" + ("" if self.of == Full() else f" of {self.of.id}")

    def kept(self) -> int | None:
        kept = self.of.kept()
        return self.tokens if kept is None else min(kept, self.tokens)

    def steep(self, length: int) -> tuple[int, ...]:
        return self.of.steep(min(length, self.tokens))

    def problems(self) -> list[str]:
        return _too_small(1, first=self.tokens)


def is_within(rule: Retention, outer: Retention) -> bool:
    """Whether tokens read by `rule` nothing that they do not read by `outer` as well."""
    if isinstance(rule, SlidingWindow) and isinstance(outer, SlidingWindow):
        return rule.window <= outer.window
    return outer in (rule, Full())


def num_stored(rule: Retention, length: int) -> int:
    """Tokens of a sequence of `length` that some token ever reads: those behind them are not stored."""
    return min(length, rule.tokens) if isinstance(rule, Beginning) else length


def _ranges(*spans: tuple[int, int]) -> tuple[range, ...]:
    return tuple(range(start, stop) for start, stop in spans if stop > start)


def live_blocks(retention: Retention, n: int, block_size: int) -> Iterator[int]:
    """Indices of the blocks that hold a live token at length n, ascending, each once."""
    done = 0
    for span in retention.live(n):
        first = max(done, span.start // block_size)
        done = -(-span.stop // block_size)
        yield from range(first, done)


def peak_blocks(retention: Retention, length: int, chunk: int, block_size: int) -> int:
    """Most blocks one sequence of `length` tokens ever holds, when up to `chunk` tokens are computed in a step.

    During a step from n to n + c a sequence holds what is live at n and the c new tokens. For a window that is one run
    of window - 1 + c tokens, which touches ceil((window - 2 + c) / block_size) + 1 blocks at the worst alignment; sinks
    start a block. Never more than ceil(length / block_size).
    """
    length = num_stored(retention, length)
    whole = -(-length // block_size)
    worst = 0
    for n in retention.steep(length):
        spans = list(retention.live(n))
        if sum(map(len, spans)) >= length - 1:
            return whole
        if spans and spans[-1].stop == n:
            spans[-1] = range(spans[-1].start, n + chunk)
        else:
            spans.append(range(n, n + chunk))
        worst = max(worst, sum(-(-(len(s) - (s.start > 0)) // block_size) + (s.start > 0) for s in spans))
    return min(whole, worst)
