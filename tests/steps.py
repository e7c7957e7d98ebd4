"""The one stand-in for a model runner: row operations, then every token of a step into the slot that a table names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kvtrove.kv.arena import Arena
from kvtrove.kv.rows import RowOp
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.kv.tiers.store import BlockStore
from kvtrove.runner.rows import Rows
from kvtrove.scheduler.output import ScheduledSequence, SchedulerOutput

Values = Callable[[ScheduledSequence, LayerKV, range], tuple[Tensor, Tensor]]
"""K and V, each [tokens, kv_heads, head_dim], of a sequence's tokens at these positions in this layer."""


def token_values(s: ScheduledSequence, layer: LayerKV, span: range) -> tuple[Tensor, Tensor]:
    """A token's K is its id and its V its position."""
    k, v = (torch.tensor(list(values), dtype=torch.int32).view(-1, 1, 1) for values in (s.tokens, span))
    return k, v


class StepRunner:
    """Executes steps on an arena without a model."""

    def __init__(self, spec: KVCacheSpec, arena: Arena, store: BlockStore | None = None) -> None:
        self.spec, self.arena, self.rows = spec, arena, Rows(arena, store)

    def execute(self, step: SchedulerOutput, values: Values) -> None:
        self.rows.execute(step.ops)
        for s in step.sequences:
            self._store(s, values)

    def planes(self, layer: LayerKV, pending: Sequence[RowOp] = ()) -> tuple[Tensor, Tensor]:
        """K and V of every row, [num_blocks, block_size, kv_heads, head_dim], as if `pending` had been executed."""
        arena = self.arena
        if pending:
            arena = Arena(self.spec, arena.num_blocks)
            arena.rows.copy_(self.arena.rows)
            Rows(arena).execute(pending)
        found = layer.format.decode(arena.views(layer.layer), torch.arange(arena.num_blocks))
        k, v = (plane.view(arena.num_blocks, self.spec.block_size, *plane.shape[1:]) for plane in found)
        return k, v

    def _store(self, s: ScheduledSequence, values: Values) -> None:
        size, span = self.spec.block_size, range(s.start, s.start + len(s.tokens))
        positions = torch.arange(span.start, span.stop)
        for layer in self.spec.layers:
            if layer.source is None:
                table = torch.from_numpy(s.block_ids[self.spec.group_of[layer.layer]].copy()).long()
                blocks = table[positions // size]
                assert (blocks >= 0).all(), "a token is computed where no block is held"
                k, v = values(s, layer, span)
                layer.format.encode(k, v, self.arena.views(layer.layer), blocks * size + positions % size)
