"""Execution of row operations: the only way from the books to the bytes, besides attention itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from kvtrove.kv.arena import Arena
from kvtrove.kv.rows import Copy, CopySeat, Fill, FillSeat, Gather, LoadMark, Look, Park, RowOp, SaveMark, Shift, Spill
from kvtrove.kv.tiers.store import BlockStore
from kvtrove.runner.gather import Gatherer

if TYPE_CHECKING:
    from kvtrove.kv.manager import KVCacheManager


class Rows:
    """The rows of one arena. Runs of equal operations are executed at once, with the effect of one after the other.

    store: where spilled rows go; without one, nothing is spilled.
    """

    def __init__(self, arena: Arena, store: BlockStore | None = None) -> None:
        self.arena, self.store = arena, store
        self.gather = Gatherer(arena)
        self._how: Mapping[type[RowOp], Callable[[list[Any]], None]] = {
            Copy: self._copy,
            Gather: self._gather,
            Shift: self._shift,
            Look: self._look,
            CopySeat: self._copy_seat,
            SaveMark: self._save_mark,
            LoadMark: self._load_mark,
            Spill: self._spill,
            Fill: self._fill,
            FillSeat: self._fill_seat,
            Park: self._park,
        }

    @torch.inference_mode()
    def execute(self, ops: Sequence[RowOp]) -> None:
        """Everything is done when this returns; what is spilled has been copied."""
        for kind, run in groupby(ops, type):
            self._how[kind](list(run))

    def settle(self, books: KVCacheManager) -> None:
        """Between two steps: take in what the tiers have brought, and execute all that the books still ask for."""
        books.poll()
        self.execute(books.take_ops())
        books.rows.executed()

    def read(self, ids: Sequence[int]) -> list[memoryview]:
        """The bytes of these rows now, each uint8 [row_bytes], copied together."""
        if not ids:
            return []
        content = self.arena.rows[torch.as_tensor(ids, device=self.arena.device)].cpu().numpy()
        return [row.data for row in content]

    def read_seat(self, seat: int) -> memoryview:
        """The bytes of a seat now, uint8 [seat_bytes]; none where sequences have no seats."""
        if seat < 0:
            return memoryview(b"")
        return self.arena.seats[seat].cpu().clone().numpy().data

    def _copy(self, ops: list[Copy]) -> None:
        self.arena.copy_rows([(op.source, op.target) for op in ops])

    def _gather(self, ops: list[Gather]) -> None:
        for op in ops:
            self.gather(op)

    def _shift(self, ops: list[Shift]) -> None:
        for op in ops:
            self.gather.shift(op)

    def _look(self, ops: list[Look]) -> None:
        for op in ops:
            self.gather.look(op)

    def _copy_seat(self, ops: list[CopySeat]) -> None:
        self.arena.copy_seats([(op.source, op.target) for op in ops])

    def _save_mark(self, ops: list[SaveMark]) -> None:
        for op in ops:
            self.arena.save_mark(op.seat, op.rows)

    def _load_mark(self, ops: list[LoadMark]) -> None:
        for op in ops:
            self.arena.load_mark(op.rows, op.seat)

    def _spill(self, ops: list[Spill]) -> None:
        if self.store is not None:
            rows = [self.arena.rows[op.source].cpu().numpy().data for op in ops]
            self.store.put([op.key for op in ops], rows)

    def _fill(self, ops: list[Fill]) -> None:
        for op in ops:
            self.arena.rows[op.target] = torch.frombuffer(op.content, dtype=torch.uint8).to(self.arena.device)

    def _fill_seat(self, ops: list[FillSeat]) -> None:
        for op in ops:
            self.arena.seats[op.target] = torch.frombuffer(op.content, dtype=torch.uint8).to(self.arena.device)

    def _park(self, ops: list[Park]) -> None:
        for op in ops:
            row = self.arena.seats[op.source] if op.seat else self.arena.rows[op.source]
            torch.frombuffer(op.target, dtype=torch.uint8).copy_(row)
