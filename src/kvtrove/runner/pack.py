"""Execution of Gather where heads keep different numbers of tokens: into the cells of packed rows (`kv.cells`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kvtrove.kv.arena import Arena
from kvtrove.kv.cells import packed_cells, write_counts
from kvtrove.kv.compaction.compactor import AfterPrompt
from kvtrove.kv.compaction.scores import Seen
from kvtrove.kv.rows import Gather
from kvtrove.kv.spec import LayerKV
from kvtrove.kv.values import read_values

See = Callable[[LayerKV, Tensor, Tensor], Seen]
"""Layer, K and V [held, heads, dim] -> what compactors see."""


def pack(arena: Arena, op: Gather, see: See) -> None:
    """All layers are scored before any is cut, and all are read before any is written: cells change their owners.

    Beside the cache, that takes the scores of all, float32, and what is kept, as it is decoded.
    """
    compactor, spec, size = op.compactor, arena.spec, arena.spec.block_size
    assert isinstance(compactor, AfterPrompt), "no other keeps unequal shares"

    def values(layer: LayerKV) -> tuple[Tensor, Tensor]:
        k, v = (x[: op.num_tokens] for x in read_values(arena, layer.layer, op.sources[0]))
        return k, v

    scores = [compactor.scores(see(layer, *values(layer))) for layer in spec.layers]
    counts = compactor.blocks(scores)
    kept = []
    for layer, found, blocks in zip(spec.layers, scores, counts, strict=True):
        k, v = values(layer)
        order = found.sort(dim=-1, descending=True, stable=True).indices
        for head, count in enumerate(blocks):
            places = order[head, : count * size].sort().values
            kept.append((layer, k[places, head], v[places, head]))
    flat = [count for blocks in counts for count in blocks]
    first, *rows = op.targets[0]
    write_counts(arena, first, flat)
    for (layer, k, v), cells in zip(kept, packed_cells(rows, spec.cells, flat), strict=True):
        slots = (torch.from_numpy(cells).to(k.device)[:, None] * size + torch.arange(size, device=k.device)).flatten()
        layer.format.encode(k[:, None], v[:, None], arena.views(layer.layer), slots)
