"""Execution of Gather where heads keep different numbers of tokens: into the cells of packed rows (`kv.cells`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kvtrove.attention.cells import CellTokens
from kvtrove.kv.arena import Arena
from kvtrove.kv.cells import packed_cells, write_counts
from kvtrove.kv.compaction.compactor import AfterPrompt
from kvtrove.kv.formats.layout import block_slots
from kvtrove.kv.rows import Gather
from kvtrove.kv.spec import LayerKV
from kvtrove.kv.values import read_values


def pack(arena: Arena, op: Gather, score: Callable[[LayerKV], Tensor], tokens: Callable[[int], object]) -> None:
    """All layers are scored before any is cut, and all are read before any is written: cells change their owners.

    score: of a layer, float32 [heads, held]. tokens: of a layer, `CellTokens` where torch need not decode it.
    Beside the cache, that takes the scores of all, float32, and what is kept, as it is stored, or decoded.
    """
    compactor, spec, size = op.compactor, arena.spec, arena.spec.block_size
    assert isinstance(compactor, AfterPrompt), "no other keeps unequal shares"
    scores = [score(layer) for layer in spec.layers]
    counts = compactor.blocks(scores)
    kept = [_best(found, [count * size for count in blocks]) for found, blocks in zip(scores, counts, strict=True)]
    flat = [count for blocks in counts for count in blocks]
    first, *rows = op.targets[0]
    cells = [torch.from_numpy(found).to(arena.device) for found in packed_cells(rows, spec.cells, flat)]
    _move(arena, op.sources[0], kept, cells, [tokens(layer.layer) for layer in spec.layers])
    write_counts(arena, first, flat)


def _best(scores: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Places of the best so many tokens of each head, ascending; of equal ones, the first."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return [places[:count].sort().values for places, count in zip(order, counts, strict=True)]


def _move(
    arena: Arena,
    rows: Sequence[int],
    kept: Sequence[Sequence[Tensor]],
    cells: Sequence[Tensor],
    tokens: Sequence[object],
) -> None:
    """Tokens of each head of each layer, at places of these rows, into cells of their own."""
    spec, size = arena.spec, arena.spec.block_size
    targets = [block_slots(of_head, size) for of_head in cells]
    direct = [one for one in tokens if isinstance(one, CellTokens)]
    if len(direct) == len(spec.layers):
        slots, sources = block_slots(torch.tensor(rows, dtype=torch.int64), size), []
        for one, heads in zip(direct, kept, strict=True):
            sources += [one.slots(head, slots[places]) for head, places in enumerate(heads)]
        direct[0].move(torch.cat(sources), torch.cat(targets))  # a cell of any layer is like any other
        return
    read = []
    for layer, heads in zip(spec.layers, kept, strict=True):
        k, v = read_values(arena, layer.layer, rows)
        read += [(layer, k[places, head], v[places, head]) for head, places in enumerate(heads)]
    for (layer, k, v), slots in zip(read, targets, strict=True):
        layer.format.encode(k[:, None], v[:, None], arena.views(layer.layer), slots)
