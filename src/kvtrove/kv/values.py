"""Keys and values of whole blocks as plain tensors: out of rows, and into rows, whatever the format."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvtrove.kv.arena import Arena


def read_values(arena: Arena, layer: int, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """K and V of a layer in the blocks of these rows, decoded: each [len(rows) * block_size, heads, dim]."""
    owner, spec = arena.spec.storage(layer), arena.spec
    ids = torch.as_tensor(rows, dtype=torch.int64, device=arena.device)
    if not spec.cells:
        return owner.format.decode(arena.views(layer), ids, owner.v_dim)
    cells = ids[:, None] * spec.cells + spec.cell_of[layer] + torch.arange(owner.heads, device=ids.device)
    k, v = owner.format.decode(arena.views(layer), cells.flatten(), owner.v_dim)  # [.. * block_size, 1, dim] of cells
    size = len(rows), owner.heads, spec.block_size
    return k.view(*size, -1).transpose(1, 2).flatten(0, 1), v.view(*size, -1).transpose(1, 2).flatten(0, 1)


def write_values(arena: Arena, layer: int, rows: Sequence[int], k: Tensor, v: Tensor) -> None:
    """Encode K and V [len(rows) * block_size, heads, dim] of whole blocks into these rows."""
    owner, size = arena.spec.storage(layer), arena.spec.block_size
    ids = torch.as_tensor(rows, dtype=torch.int64, device=arena.device)
    k, v = (x.view(-1, size, *x.shape[1:]) for x in (k, v))
    if cells := arena.spec.cells:
        ids = ids[:, None] * cells + arena.spec.cell_of[layer] + torch.arange(owner.heads, device=ids.device)
        k, v = (x.transpose(1, 2).flatten(0, 1)[:, :, None] for x in (k, v))
        ids = ids.flatten()
    owner.format.seal(k, v, arena.views(layer), ids)
