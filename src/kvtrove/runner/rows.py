"""Execution of row operations: the only way from the books to the bytes, besides attention itself."""

from __future__ import annotations

from collections.abc import Sequence

from kvtrove.kv.arena import Arena
from kvtrove.kv.rows import RowOp


class Rows:
    """The rows of one arena. Runs of equal operations are executed at once, with the effect of one after the other."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena

    def execute(self, ops: Sequence[RowOp]) -> None:
        """Everything is done when this returns."""
        self.arena.copy_rows([(op.source, op.target) for op in ops])
