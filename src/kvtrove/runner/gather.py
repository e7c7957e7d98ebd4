"""Execution of Gather: which tokens a compactor keeps of each layer and head, and their move into other rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kvtrove.kv.arena import Arena
from kvtrove.kv.compaction.scores import Seen
from kvtrove.kv.formats.layout import block_slots
from kvtrove.kv.rows import Gather

Turn = Callable[[int, Tensor, Tensor], Tensor]
"""Layer, keys [n, heads, k_dim], by how many positions each moves, int64 [n, heads] -> keys at their new positions."""
Attention = Callable[[int, Tensor, Tensor], Tensor]
"""Layer, queries [w, num_heads, k_dim], keys [n, heads, k_dim] -> probabilities as `Seen` has them."""


class Gatherer:
    """Of one arena. turn, attention: of a model; without one, keys are moved as they are and no queries are seen."""

    def __init__(self, arena: Arena, turn: Turn | None = None, attention: Attention | None = None) -> None:
        self.arena, self.turn, self.attention = arena, turn, attention

    def __call__(self, op: Gather) -> None:
        """Layer by layer, since their planes lie apart: a layer's tokens are all read before any is written."""
        spec = self.arena.spec
        for layer in spec.layers:
            if layer.source is not None:
                continue
            group, view = spec.group_of[layer.layer], self.arena.views(layer.layer)
            rows, targets = (self._ids(ids[group]) for ids in (op.sources, op.targets))
            k, v = (side[: op.num_tokens] for side in layer.format.decode(view, rows))
            keep = op.compactor.keep(Seen(k, self._probabilities(layer.layer, k, op.observed)))
            kept_k, kept_v = _take(k, keep), _take(v, keep)
            if op.compactor.contiguous and self.turn is not None and layer.format.rope == "post":
                places = torch.arange(keep.shape[1], device=keep.device)[:, None]
                kept_k = self.turn(layer.layer, kept_k, places - keep.T)
            slots = block_slots(targets, spec.block_size)[: keep.shape[1]]
            layer.format.encode(kept_k, kept_v, view, slots)

    def _ids(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.int64, device=self.arena.device)

    def _probabilities(self, layer: int, k: Tensor, observed: Sequence[Sequence[Tensor]]) -> Tensor | None:
        """observed: a part of the window each step, of every layer [tokens, num_heads, k_dim]."""
        if not observed or self.attention is None:
            return None
        return self.attention(layer, torch.cat([part[layer] for part in observed]), k)


def _take(x: Tensor, keep: Tensor) -> Tensor:
    """Tokens keep int64 [heads, m] of x [n, heads, dim]: [m, heads, dim]. Vectors are copied, not elements."""
    (n, heads, dim), (_, m) = x.shape, keep.shape
    first = torch.arange(heads, device=x.device)[:, None] * n
    taken = x.transpose(0, 1).reshape(heads * n, dim).index_select(0, (keep + first).flatten())
    return taken.view(heads, m, dim).transpose(0, 1)
