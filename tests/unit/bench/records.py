"""Records written by hand: the event lists on which the statistics are checked exactly."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvtrove.bench.record import Record


def record(
    arrival: float,
    chunks: list[tuple[float, int]],
    conversation: int = 0,
    turn: int = 0,
    num_turns: int = 1,
    **more: Any,
) -> Record:
    """chunks: (seconds after the arrival, tokens). It is sent at once and ends with its last token."""
    times = np.array([arrival + time for time, _ in chunks])
    values = {"sent": arrival, "ended": float(times[-1]) if chunks else arrival, **more}
    tokens = np.array([float(count) for _, count in chunks])
    return Record(conversation, turn, num_turns, arrival, times=times, tokens=tokens, **values)


def steady(arrival: float, ttft: float, gap: float, tokens: int, conversation: int = 0, **more: Any) -> Record:
    """One token per chunk, evenly spaced."""
    return record(arrival, [(ttft + gap * n, 1) for n in range(tokens)], conversation, **more)
