"""Queries of some tokens of a step, kept for compactors that score by them. Such a step is computed layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kvtrove.attention.backend import Rotation
from kvtrove.scheduler.output import ScheduledSequence


class Observer:
    """Of the last `observe` tokens of each sequence. query_start: first row of each, and the number of rows."""

    def __init__(self, sequences: Sequence[ScheduledSequence], query_start: Sequence[int], positions: Tensor) -> None:
        self._rows = {
            s.seq_id: slice(stop - s.observe, stop)
            for s, stop in zip(sequences, query_start[1:], strict=True)
            if s.observe
        }
        self._positions = positions
        self.seen: dict[int, list[Tensor]] = {seq_id: [] for seq_id in self._rows}

    def __call__(self, q: Tensor, rotate: Rotation | None) -> None:
        """The next layer's queries [T, num_heads, k_dim], before they are rotated."""
        for seq_id, rows in self._rows.items():
            x = q[rows]
            self.seen[seq_id].append(x.clone() if rotate is None else rotate.at(self._positions[rows])(x))
