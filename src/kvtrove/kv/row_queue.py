"""The operations on rows that the next step has to execute, and what is not true before it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from kvtrove.kv.block import Block
from kvtrove.kv.rows import Copy, Fill, Gather, RowOp, SaveMark, Shift


class RowQueue:
    """In the order of execution. crc: checksum of a row, for blocks that are filled."""

    def __init__(self, crc: Callable[[int], int] | None = None) -> None:
        self._crc = crc
        self._ops: list[RowOp] = []
        self._unfilled: list[Block] = []  # in use before the operation that fills their rows was executed
        self._taken: list[Block] = []  # those of operations that were handed out

    def add(self, ops: Iterable[RowOp]) -> None:
        self._ops += ops

    def copy(self, sources: Iterable[Block | None], targets: Iterable[Block | None]) -> None:
        """Copy the row of each source that there is, where there is a target."""
        pairs = zip(sources, targets, strict=True)
        self._ops += [Copy(source.id, target.id) for source, target in pairs if source and target]

    def fill(self, block: Block, content: memoryview) -> None:
        self._ops.append(Fill(block.id, content))
        self._unfilled.append(block)

    def save(self, seat: int, blocks: Sequence[Block]) -> None:
        """The states of a seat into the blocks of a checkpoint."""
        self._ops.append(SaveMark(seat, tuple(block.id for block in blocks)))
        self._unfilled += blocks

    def gather(self, op: Gather, targets: Iterable[Block]) -> None:
        """targets: the private blocks that it fills."""
        self._ops.append(op)
        self._unfilled += targets

    def shift(
        self,
        sources: tuple[tuple[int, ...], ...],
        targets: Sequence[Sequence[Block]],
        start: tuple[int, int],
        num_tokens: int,
        by: int,
    ) -> None:
        """As `Shift`; targets: blocks of one sequence alone."""
        ids = tuple(tuple(block.id for block in row) for row in targets)
        self._ops.append(Shift(sources, ids, start, num_tokens, by))
        self._unfilled += [block for row in targets for block in row]

    def waiting(self) -> list[RowOp]:
        """What `take` would hand out."""
        return list(self._ops)

    def take(self) -> list[RowOp]:
        ops, self._ops = self._ops, []
        self._taken += self._unfilled
        self._unfilled = []
        return ops

    def executed(self) -> None:
        """All that was taken has been executed."""
        if self._taken:
            for block in self._taken:
                if self._crc is not None and block.sealed:
                    block.crc = self._crc(block.id)
            self._taken.clear()

    def drop(self) -> list[Block]:
        """Nothing that is waiting, or was taken and not confirmed, will be executed; returns what is left unfilled."""
        unfilled, self._taken, self._unfilled = self._taken + self._unfilled, [], []
        self._ops.clear()
        return unfilled
