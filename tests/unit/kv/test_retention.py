"""Retention rules on numbers that can be checked by hand; the laws they obey are in tests/property."""

from __future__ import annotations

import pytest

from kvtrove.kv.retention import ChunkedLocal, Full, Retention, SinksAndWindow, SlidingWindow, live_blocks, peak_blocks


@pytest.mark.parametrize(
    ("rule", "n", "live"),
    [
        (Full(), 0, []),
        (Full(), 5, [range(5)]),
        (SlidingWindow(4), 3, [range(3)]),
        (SlidingWindow(4), 4, [range(1, 4)]),  # itself and the 3 before it
        (SlidingWindow(1), 9, []),  # itself alone
        (SinksAndWindow(2, 4), 3, [range(3)]),
        (SinksAndWindow(2, 4), 4, [range(1), range(1, 4)]),  # the window begins inside the sinks
        (SinksAndWindow(2, 4), 9, [range(2), range(6, 9)]),
        (ChunkedLocal(4), 4, []),  # the first of a chunk
        (ChunkedLocal(4), 7, [range(4, 7)]),
    ],
)
def test_live(rule: Retention, n: int, live: list[range]) -> None:
    assert list(rule.live(n)) == live


def test_sinks_and_window_in_one_block_count_once() -> None:
    assert list(live_blocks(SinksAndWindow(2, 4), 8, 16)) == [0]
    assert list(live_blocks(SinksAndWindow(2, 4), 40, 16)) == [0, 2]


@pytest.mark.parametrize(
    ("rule", "length", "chunk", "peak"),
    [
        (Full(), 100, 16, 7),
        (Full(), 1, 1, 1),
        (SlidingWindow(16), 1000, 1, 2),  # 15 live + 1 new = 16 tokens touch 2 blocks when they are not aligned
        (SlidingWindow(17), 1000, 1, 2),
        (SlidingWindow(18), 1000, 1, 3),  # 18 tokens can touch 3
        (SlidingWindow(1), 1000, 2, 2),  # 2 new tokens can lie in 2 blocks though nothing else is live
        (SlidingWindow(2000), 1000, 1, 63),  # never more than the whole sequence
        (SinksAndWindow(16, 16), 1000, 1, 3),
        (SinksAndWindow(1, 1), 1000, 2, 3),
        (ChunkedLocal(32), 1000, 1, 3),  # not aligned to blocks in general: 32 tokens touch 3
    ],
)
def test_peak_blocks(rule: Retention, length: int, chunk: int, peak: int) -> None:
    assert peak_blocks(rule, length, chunk, 16) == peak
