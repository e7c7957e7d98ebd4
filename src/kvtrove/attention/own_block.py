"""Formats that encode whole blocks: a query reads its own block as it was computed, older blocks as they are sealed.

    block      | 0: sealed | 1: sealed | 2: sealed | 3: open |      block_size 32, a chunk of positions 70 .. 110
    dense                      (seat)  |64 69|70  95|96   110|      64 .. 69 come from the seat, the rest is new
    a query at 90 reads    0 ..... 63 sealed |64 .. 90 dense
    a query at 100 reads   0 ............... 95 sealed |96 .. 100 dense

A step seals every block that it completes before anybody reads. So which bytes a query reads depends on its position
alone, never on how the tokens before it were cut into steps: token by token, in chunks, after a hit (which resumes at
a border) and after a preemption, the same. What is left of the open block goes into the sequence's seat.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from kvtrove.attention.backend import AttentionBatch, AttentionLayer
from kvtrove.kv.retention import Retention


@dataclass(frozen=True, eq=False)
class OwnBlocks:
    """The n blocks that the new tokens of a step lie in, all sequences one after the other.

    place: int64 [T], slot of each new token among n * block_size. held: bool [n, block_size], slots with a token.
    positions: int64 [n * block_size], of each slot.
    before, after: (blocks, seats), int64 each: open blocks whose beginning a seat holds, and those that stay open.
    sealed: (blocks, sequences, indices in their tables), int64 each, of the blocks that this step completes.
    """

    batch: AttentionBatch
    block_size: int
    place: Tensor
    held: Tensor
    positions: Tensor
    before: tuple[Tensor, Tensor]
    after: tuple[Tensor, Tensor]
    sealed: tuple[Tensor, Tensor, Tensor]
    masks: dict[Retention, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: AttentionBatch, block_size: int, device: torch.device) -> OwnBlocks:
        place: list[int] = []
        held: list[int] = []
        indices: list[int] = []
        before, after, sealed, blocks = [], [], [], 0
        for s, start in enumerate(batch.start):
            stop = start + batch.query_start[s + 1] - batch.query_start[s]
            if stop == start:
                continue
            first, last = start // block_size, (stop - 1) // block_size
            place += range(blocks * block_size + start % block_size, blocks * block_size + stop - first * block_size)
            held += [min(block_size, stop - i * block_size) for i in range(first, last + 1)]
            indices += range(first, last + 1)
            if start % block_size:
                before.append((blocks, batch.seats[s]))
            if stop % block_size:
                after.append((blocks + last - first, batch.seats[s]))
            blocks += last - first + 1
        starts = {}  # sequence -> (its first block here, its index in the table)
        at = 0
        for s, start in enumerate(batch.start):
            count = batch.query_start[s + 1] - batch.query_start[s]
            starts[s] = at, start // block_size
            at += -(-(start + count) // block_size) - start // block_size if count else 0
        for s, index in batch.completed:
            sealed.append((starts[s][0] + index - starts[s][1], s, index))

        def ship(rows: list[tuple[int, ...]], columns: int) -> tuple[Tensor, ...]:
            return tuple(torch.tensor(rows, dtype=torch.int64, device=device).reshape(-1, columns).unbind(1))

        lengths, slots = torch.tensor(held, dtype=torch.int64, device=device), torch.arange(block_size, device=device)
        borders = torch.tensor(indices, dtype=torch.int64, device=device) * block_size
        return cls(
            batch,
            block_size,
            torch.tensor(place, dtype=torch.int64, device=device),
            slots < lengths[:, None],
            (borders[:, None] + slots).flatten(),
            ship(before, 2),  # type: ignore[arg-type]
            ship(after, 2),  # type: ignore[arg-type]
            ship(sealed, 3),  # type: ignore[arg-type]
        )

    def write(self, k: Tensor, v: Tensor, layer: AttentionLayer) -> tuple[Tensor, Tensor]:
        """Seal what k, v [T, kv_heads, dim] complete, keep what stays open; the dense K and V, [n, block_size, ...]."""
        dense_k, dense_v = (self._dense(x, layer.tails[side]) for side, x in (("k", k), ("v", v)))
        blocks, sequences, indices = self.sealed
        if len(blocks):
            rows = self.batch.groups[layer.group].block_table[sequences, indices].long()
            layer.format.seal(dense_k[blocks], dense_v[blocks], layer.view, rows)
        blocks, seats = self.after
        layer.tails["k"][seats], layer.tails["v"][seats] = dense_k[blocks], dense_v[blocks]
        return dense_k, dense_v

    def _dense(self, x: Tensor, tails: Tensor) -> Tensor:
        dense = tails.new_zeros((*self.held.shape, *tails.shape[2:]))
        blocks, seats = self.before
        dense[blocks] = tails[seats]
        dense.flatten(0, 1)[self.place] = x.to(dense.dtype)
        return dense.masked_fill_(~self.held[..., None, None], 0)

    def mask(self, rule: Retention) -> Tensor:
        """bool [n, block_size, block_size]: which slot of its own block each query reads."""
        if rule not in self.masks:
            size, batch = self.block_size, self.batch
            reads = np.zeros((self.held.shape[0] * size, size), dtype=bool)
            positions = np.concatenate(
                [np.arange(a) + start for a, start in zip(np.diff(batch.query_start), batch.start, strict=True)]
            )
            for row, p in zip(self.place.tolist(), positions.tolist(), strict=True):
                border = p // size * size
                for span in rule.live(p):
                    reads[row, max(0, span.start - border) : max(0, span.stop - border)] = True
                reads[row, p - border] = True
            self.masks[rule] = torch.from_numpy(reads).view(-1, size, size).to(self.place.device)
        return self.masks[rule]


@dataclass(frozen=True)
class Shared:
    """Dense K and V of this step, by the layer that stores them, for layers that read them too."""

    by_storage: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def of(self, layer: AttentionLayer, k: Tensor | None, v: Tensor | None, own: OwnBlocks) -> tuple[Tensor, Tensor]:
        """Written now, or by the layer whose storage this one reads."""
        if k is None or v is None:
            first, stop = layer.source_heads or (0, None)
            dense_k, dense_v = self.by_storage[layer.storage]
            return dense_k[:, :, first:stop], dense_v[:, :, first:stop]
        found = own.write(k, v, layer)
        if layer.is_shared:
            self.by_storage[layer.storage] = found
        return found
