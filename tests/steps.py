"""The one stand-in for a model runner: row operations, then every token of a step into the slot that a table names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from kvtrove.attention.backend import AttentionBatch, AttentionLayer
from kvtrove.attention.cells import CellsPlan
from kvtrove.attention.own_block import OwnBlocks
from kvtrove.kv.arena import Arena
from kvtrove.kv.formats.codec import TokenCodec
from kvtrove.kv.plane import LayerState, Plane
from kvtrove.kv.retention import Beginning
from kvtrove.kv.rows import RowOp
from kvtrove.kv.spec import KVCacheSpec, KVFormat, LayerKV, Planes
from kvtrove.kv.tiers.store import BlockStore
from kvtrove.runner.batch import build_batch
from kvtrove.runner.gather import Gatherer, Turn
from kvtrove.runner.rows import Rows
from kvtrove.scheduler.output import ScheduledSequence, SchedulerOutput

Values = Callable[[ScheduledSequence, LayerKV, range], tuple[Tensor, Tensor]]
"""K and V, each [tokens, kv_heads, head_dim], of a sequence's tokens at these positions in this layer."""


def token_values(s: ScheduledSequence, layer: LayerKV, span: range) -> tuple[Tensor, Tensor]:
    """A token's K is its id and its V its position."""
    k, v = (torch.tensor(list(values), dtype=torch.int32).view(-1, 1, 1) for values in (s.tokens, span))
    return k, v


@dataclass(frozen=True)
class EchoSealed(TokenCodec):
    """An echo that needs whole blocks: a sealed block lies back to front, with other bits. Decoding undoes both."""

    @property
    def id(self) -> str:
        return "echo-sealed/1"

    @property
    def whole_block(self) -> bool:
        return True

    def planes(self, heads: int, dim: int, block_size: int) -> tuple[Plane, ...]:
        return (Plane("data", "int32", (block_size, heads, dim)),)

    def seal(self, x: Tensor, view: Planes, rows: Tensor) -> None:
        view["data"][rows] = x.flip(1) ^ 0x5A5A

    def decode(self, view: Planes, rows: Tensor) -> Tensor:
        return (view["data"][rows].flip(1) ^ 0x5A5A).flatten(0, 1)


ECHO_SEALED = KVFormat(EchoSealed("k"), EchoSealed("v"))


ECHO_STATE = LayerState(99, "echo/1", (Plane("echo", "int32", (40, 2)),))
"""A running state that gives away every token that was skipped, or seen twice: 40 times the same pair of numbers."""


def echo_state(tokens: Iterable[int], before: Sequence[int] = (0, 0)) -> list[int]:
    """[how many, checksum of all] tokens after these."""
    count, digest = before
    for token in tokens:
        count, digest = count + 1, (digest * 31 + token + 1) % (2**31 - 1)
    return [count, digest]


class StepRunner:
    """Executes steps on an arena without a model."""

    def __init__(
        self, spec: KVCacheSpec, arena: Arena, store: BlockStore | None = None, turn: Turn | None = None
    ) -> None:
        """turn: what moves keys of a layer to other positions; without, they are moved as they are."""
        self.spec, self.arena, self.rows, self.turn = spec, arena, Rows(arena, store), turn
        self.rows.gather = Gatherer(arena, turn)

    def execute(self, step: SchedulerOutput, values: Values) -> None:
        self.rows.execute(step.ops)
        sequences = [s for s in step.sequences if s.tokens]
        if not sequences:
            return
        self._follow(sequences)
        batch = build_batch(sequences, self.spec.block_size, "cpu", self.arena).attention
        for layer in self.spec.layers:
            if layer.source is None:
                spans = [range(s.start, s.start + len(s.tokens)) for s in sequences]
                parts = [values(s, layer, span) for s, span in zip(sequences, spans, strict=True)]
                k, v = (torch.cat([part[side] for part in parts]) for side in (0, 1))
                self._store(layer, batch, k, v)

    def planes(self, layer: LayerKV, pending: Sequence[RowOp] = ()) -> tuple[Tensor, Tensor]:
        """K and V of every row, [num_blocks, block_size, kv_heads, head_dim], as if `pending` had been executed."""
        arena = self.after(pending)
        found = self.spec.storage(layer.layer).format.decode(arena.views(layer.layer), torch.arange(arena.num_blocks))
        k, v = (plane.view(arena.num_blocks, self.spec.block_size, *plane.shape[1:]) for plane in found)
        return k, v

    def tails(self, layer: LayerKV, pending: Sequence[RowOp] = ()) -> tuple[Tensor, Tensor] | None:
        """K and V of every seat, [num_seats, block_size, kv_heads, head_dim]; None where the layer needs none."""
        tails = self.after(pending).tails(layer.layer)
        return (tails["k"], tails["v"]) if tails else None

    def states(self, pending: Sequence[RowOp] = ()) -> Tensor:
        """Echo states of every seat, int32 [num_seats, 40, 2], as if `pending` had been executed."""
        [state] = self.after(pending).states.values()
        return state["echo"]

    def _follow(self, sequences: Sequence[ScheduledSequence]) -> None:
        """Echo states of this step's sequences. All states of a cache are `echo_state`."""
        self.arena.forget_states([s.seat for s in sequences if s.start == 0])
        for state in self.arena.states.values():
            for s in sequences:
                value = echo_state(s.tokens, state["echo"][s.seat][0].tolist())
                state["echo"][s.seat] = torch.tensor(value, dtype=torch.int32)

    def after(self, pending: Sequence[RowOp]) -> Arena:
        """The arena as if `pending` had been executed."""
        if not pending:
            return self.arena
        arena = Arena(self.spec, self.arena.num_blocks, num_seats=len(self.arena.seats))
        arena.rows.copy_(self.arena.rows)
        arena.seats.copy_(self.arena.seats)
        rows = Rows(arena)
        rows.gather = Gatherer(arena, self.turn)
        rows.execute(pending)
        return arena

    def _store(self, layer: LayerKV, batch: AttentionBatch, k: Tensor, v: Tensor) -> None:
        tables = batch.groups[self.spec.group_of[layer.layer]]
        held = tables.slots >= 0
        assert isinstance(layer.retention, Beginning) or held.all(), "a token is computed where no block is held"
        if self.spec.cells:
            plan = CellsPlan(batch, self.spec.block_size, self.spec.cells)
            first = attention_layer(self.spec, self.arena, layer, layer.heads).cell
            for head in range(k.shape[1]):
                slots = plan.of(first + head, SimpleNamespace(plan=_same)).groups[0].slots
                layer.format.encode(k[:, head, None], v[:, head, None], self.arena.views(layer.layer), slots)
        elif layer.format.whole_block:
            own = OwnBlocks.of(batch, self.spec.block_size, tables.slots.device)
            own.write(k, v, attention_layer(self.spec, self.arena, layer, layer.heads))
        else:
            layer.format.encode(k[held], v[held], self.arena.views(layer.layer), tables.slots[held])


def _same(batch: AttentionBatch) -> AttentionBatch:
    return batch


def attention_layer(spec: KVCacheSpec, arena: Arena, layer: LayerKV, num_heads: int) -> AttentionLayer:
    """A layer of an arena as backends know it."""
    storage = spec.storage(layer.layer)
    plain = AttentionLayer(
        index=layer.layer,
        num_heads=num_heads,
        kv_heads=layer.heads,
        source_heads=layer.source_heads,
        k_dim=storage.k_dim,
        v_dim=storage.v_dim,
        scale=storage.k_dim**-0.5,
        retention=layer.retention,
        format=storage.format,
        group=spec.group_of[layer.layer],
        view=arena.views(layer.layer),
        block_size=spec.block_size,
        storage=storage.layer,
        is_shared=any(other.source == layer.layer for other in spec.layers),
        tails=arena.tails(layer.layer),
        cells=spec.cells,
        cell=spec.cell_of[layer.layer],
    )
    if storage.first is None:
        return plain
    return plain.storing_first(storage.first, spec.first_group_of[layer.layer], arena.first_views(layer.layer))
