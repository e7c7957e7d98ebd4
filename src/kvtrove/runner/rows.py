"""Execution of row operations: the only way from the books to the bytes, besides attention itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

from kvtrove.kv.arena import Arena
from kvtrove.kv.rows import Copy, CopySeat, Fill, LoadMark, RowOp, SaveMark, Spill
from kvtrove.kv.tiers.store import BlockStore


class Rows:
    """The rows of one arena. Runs of equal operations are executed at once, with the effect of one after the other.

    store: where spilled rows go; without one, nothing is spilled.
    """

    def __init__(self, arena: Arena, store: BlockStore | None = None) -> None:
        self.arena, self.store = arena, store
        self._how: Mapping[type[RowOp], Callable[[list[Any]], None]] = {
            Copy: self._copy,
            CopySeat: self._copy_seat,
            SaveMark: self._save_mark,
            LoadMark: self._load_mark,
            Spill: self._spill,
            Fill: self._fill,
        }

    def execute(self, ops: Sequence[RowOp]) -> None:
        """Everything is done when this returns; what is spilled has been copied."""
        for kind, run in groupby(ops, type):
            self._how[kind](list(run))

    def _copy(self, ops: list[Copy]) -> None:
        self.arena.copy_rows([(op.source, op.target) for op in ops])

    def _copy_seat(self, ops: list[CopySeat]) -> None:
        self.arena.copy_seats([(op.source, op.target) for op in ops])

    def _save_mark(self, ops: list[SaveMark]) -> None:
        self.arena.save_marks([(op.seat, op.mark) for op in ops])

    def _load_mark(self, ops: list[LoadMark]) -> None:
        self.arena.load_marks([(op.mark, op.seat) for op in ops])

    def _spill(self, ops: list[Spill]) -> None:
        if self.store is not None:
            rows = [self.arena.rows[op.source].cpu().numpy().data for op in ops]
            self.store.put([op.key for op in ops], rows)

    def _fill(self, ops: list[Fill]) -> None:
        for op in ops:
            self.arena.rows[op.target] = torch.frombuffer(op.content, dtype=torch.uint8).to(self.arena.device)
