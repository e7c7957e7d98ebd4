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
    """A rule of attention that a token's position decides."""

    def live(self, n: int) -> tuple[range, ...]:
        """Positions < n that the token at position n reads: ascending, disjoint, half-open ranges, none empty."""
        ...


@dataclass(frozen=True)
class Full:
    """Every token reads every earlier one."""

    def live(self, n: int) -> tuple[range, ...]:
        return _ranges((0, n))


@dataclass(frozen=True)
class SlidingWindow:
    """A token reads itself and the `window - 1` before it (the convention of Hugging Face and vLLM)."""

    window: int

    def live(self, n: int) -> tuple[range, ...]:
        return _ranges((max(0, n - self.window + 1), n))


@dataclass(frozen=True)
class SinksAndWindow:
    """The first `sinks` tokens and a sliding window (StreamingLLM, arXiv 2309.17453, with true positions)."""

    sinks: int
    window: int

    def live(self, n: int) -> tuple[range, ...]:
        start = max(0, n - self.window + 1)
        return _ranges((0, min(self.sinks, start)), (start, n))


@dataclass(frozen=True)
class ChunkedLocal:
    """A token reads its own chunk of `chunk` tokens (Llama 4)."""

    chunk: int

    def live(self, n: int) -> tuple[range, ...]:
        return _ranges((n // self.chunk * self.chunk, n))


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
    whole = -(-length // block_size)
    worst = 0
    for n in _steep_points(retention, length):
        spans = list(retention.live(n))
        if sum(map(len, spans)) >= length - 1:
            return whole
        if spans and spans[-1].stop == n:
            spans[-1] = range(spans[-1].start, n + chunk)
        else:
            spans.append(range(n, n + chunk))
        worst = max(worst, sum(-(-(len(s) - (s.start > 0)) // block_size) + (s.start > 0) for s in spans))
    return min(whole, worst)


def _steep_points(retention: Retention, length: int) -> tuple[int, ...]:
    """Lengths at which `live` of every rule above is largest: the end, and the last token of a full chunk."""
    last = max(0, length - 1)
    chunk = getattr(retention, "chunk", 0)
    return (last, max(0, last // chunk * chunk - 1)) if chunk else (last,)
