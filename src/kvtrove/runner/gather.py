"""Execution of Gather: which tokens a compactor keeps of each layer and head, and their move into other rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from kvtrove.kv.arena import Arena
from kvtrove.kv.compaction.decoding import WhileDecoding
from kvtrove.kv.compaction.scores import Seen
from kvtrove.kv.formats.layout import block_slots
from kvtrove.kv.rows import Gather, Look
from kvtrove.kv.spec import LayerKV
from kvtrove.kv.values import read_values
from kvtrove.runner.pack import pack

Turn = Callable[[int, Tensor, Tensor], Tensor]
"""Layer, keys [n, heads, k_dim], by how many positions each moves, int64 [n, heads] -> keys at their new positions."""
Attention = Callable[[int, Tensor, Tensor], Tensor]
"""Layer, queries [w, num_heads, k_dim], keys [n, heads, k_dim] -> what `Seen.attend` gives."""


class Gatherer:
    """Of one arena. turn, attention, scale: of a model; without, keys are moved as they are and no queries are seen."""

    def __init__(
        self, arena: Arena, turn: Turn | None = None, attention: Attention | None = None, scale: float = 1.0
    ) -> None:
        self.arena, self.turn, self.attention, self.scale = arena, turn, attention, scale

    def __call__(self, op: Gather) -> None:
        """Layer by layer, since their planes lie apart: a layer's tokens are all read before any is written."""
        spec = self.arena.spec
        if op.compactor.unequal:
            pack(self.arena, op, lambda layer, k, v: self._seen(layer, k, v, op))
            return
        for layer in spec.layers:
            if layer.source is not None:
                continue
            group, view = spec.group_of[layer.layer], self.arena.views(layer.layer)
            rows, targets = (self._ids(ids[group]) for ids in (op.sources, op.targets))
            k, v = (side[: op.num_tokens] for side in layer.format.decode(view, rows))
            keep = self._kept(op, layer.layer, self._seen(layer, k, v, op))
            kept_k, kept_v = _take(k, keep), _take(v, keep)
            if op.compactor.contiguous and self.turn is not None and layer.format.rope == "post":
                places = torch.arange(keep.shape[1], device=keep.device)[:, None]
                kept_k = self.turn(layer.layer, kept_k, places - keep.T)
            slots = block_slots(targets, spec.block_size)[: keep.shape[1]]
            layer.format.encode(kept_k, kept_v, view, slots)

    def _ids(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.int64, device=self.arena.device)

    def _kept(self, op: Gather, layer: int, seen: Seen) -> Tensor:
        compactor = op.compactor
        if op.memory is None or not isinstance(compactor, WhileDecoding):
            return compactor.keep(seen)
        scores = compactor.scores(seen)
        keep = compactor.best(scores, again=seen.given is not None)
        op.memory[layer] = scores.gather(1, keep)
        return keep

    def look(self, op: Look) -> None:
        spec = self.arena.spec
        for layer in spec.layers:
            if layer.source is None:
                k, v = read_values(self.arena, layer.layer, op.sources[spec.group_of[layer.layer]])
                op.look(layer.layer, self._seen(layer, k[: op.num_tokens], v[: op.num_tokens], op))

    def _seen(self, layer: LayerKV, k: Tensor, v: Tensor, op: Gather | Look) -> Seen:
        """op.observed: a part of the window each step, of every layer [tokens, num_heads, k_dim]."""
        index, observed = layer.layer, op.observed
        given = op.scores.get(index) if isinstance(op, Gather) and op.scores else None
        shift = op.shift if isinstance(op, Gather) else 0
        turn = None if self.turn is None else partial(self.turn, index)
        if not observed or self.attention is None:
            return Seen(k, v=v, turn=turn, given=given, layer=index, shift=shift)
        q = torch.cat([part[index] for part in observed])
        return Seen(k, partial(self.attention, index, q, k), v, q, turn, self.scale, given, index, shift)


def _take(x: Tensor, keep: Tensor) -> Tensor:
    """Tokens keep int64 [heads, m] of x [n, heads, dim]: [m, heads, dim]. Vectors are copied, not elements."""
    (n, heads, dim), (_, m) = x.shape, keep.shape
    first = torch.arange(heads, device=x.device)[:, None] * n
    taken = x.transpose(0, 1).reshape(heads * n, dim).index_select(0, (keep + first).flatten())
    return taken.view(heads, m, dim).transpose(0, 1)
