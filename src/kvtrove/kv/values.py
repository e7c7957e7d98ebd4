"""Keys and values of whole blocks as plain tensors: out of rows, and into rows, whatever the format."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvtrove.kv.arena import Arena


def read_values(arena: Arena, layer: int, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """K and V of a layer in the blocks of these rows, decoded: each [len(rows) * block_size, heads, dim]."""
    owner = arena.spec.storage(layer)
    ids = torch.as_tensor(rows, dtype=torch.int64, device=arena.device)
    return owner.format.decode(arena.views(layer), ids, owner.v_dim)


def write_values(arena: Arena, layer: int, rows: Sequence[int], k: Tensor, v: Tensor) -> None:
    """Encode K and V [len(rows) * block_size, heads, dim] of whole blocks into these rows."""
    owner, size = arena.spec.storage(layer), arena.spec.block_size
    ids = torch.as_tensor(rows, dtype=torch.int64, device=arena.device)
    k, v = (x.view(-1, size, *x.shape[1:]) for x in (k, v))
    owner.format.seal(k, v, arena.views(layer), ids)
