"""How the elements of K and V lie in a block: an order that vector and matrix instructions read without shuffling.

    tiled   K [heads, block_size / 16, dim / pack, 16, pack]    V [heads, block_size / pack, dim, pack]
    plain   K [heads, block_size, dim]                          V [heads, block_size, dim]

`pack` neighbours fill 32 bits: 2 of 16-bit elements, 4 of int8. In a product, 16 tokens of K (or elements of V) are
then one load, their scores come out side by side, and both are operands as matrix units (AMX) take them. The layout is
the same on every machine, so that stored blocks travel. Blocks that hold no whole tiles are plain.

Tensors are used by their methods alone, so that this needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from kvtrove.kv.plane import DTYPE_BYTES, Plane
from kvtrove.kv.spec import Side

if TYPE_CHECKING:
    from torch import Tensor

Layout = Literal["tiled", "plain"]
TILE = 16  # tokens


def is_tiled(layout: Layout, dtype: str, dim: int, block_size: int) -> bool:
    """Whether such blocks are tiled: they consist of whole tiles, and vectors of whole packs."""
    return layout == "tiled" and block_size % TILE == 0 and dim % _pack(dtype) == 0


def data_plane(side: Side, layout: Layout, dtype: str, heads: int, dim: int, block_size: int) -> Plane:
    """The plane "data" of one block, for vectors of `dim` elements."""
    pack = _pack(dtype)
    if not is_tiled(layout, dtype, dim, block_size):
        return Plane("data", dtype, (heads, block_size, dim))
    if side == "k":
        return Plane("data", dtype, (heads, block_size // TILE, dim // pack, TILE, pack))
    return Plane("data", dtype, (heads, block_size // pack, dim, pack))


def write(side: Side, x: Tensor, plane: Tensor, slots: Tensor) -> None:
    """Put x [T, heads, dim], of the plane's dtype, into slots int64 [T]; plane: [num_blocks, *shape]."""
    if plane.dim() == 4:
        block_size = plane.shape[2]
        plane[slots // block_size, :, slots % block_size] = x
    elif side == "k":
        pack = plane.shape[5]
        block_size = plane.shape[2] * TILE
        block, offset = slots // block_size, slots % block_size
        plane[block, :, offset // TILE, :, offset % TILE] = x.reshape(*x.shape[:-1], x.shape[-1] // pack, pack)
    else:
        pack = plane.shape[4]
        block_size = plane.shape[2] * pack
        block, offset = slots // block_size, slots % block_size
        plane[block, :, offset // pack, :, offset % pack] = x


def read(side: Side, plane: Tensor, block_ids: Tensor) -> Tensor:
    """[n * block_size, heads, dim] of blocks int64 [n], of the plane's dtype."""
    x = plane[block_ids]
    if plane.dim() == 4:
        return x.transpose(1, 2).flatten(0, 1)
    if side == "k":
        return x.permute(0, 2, 4, 1, 3, 5).flatten(4, 5).flatten(0, 2)  # [n, tiles, 16, heads, dim / pack, pack]
    return x.permute(0, 2, 4, 1, 3).flatten(0, 2)


def write_scales(scales: Tensor, plane: Tensor, slots: Tensor) -> None:
    """Put scales [T, heads] into a plane [num_blocks, heads, block_size]."""
    block_size = plane.shape[2]
    plane[slots // block_size, :, slots % block_size] = scales


def read_scales(plane: Tensor, block_ids: Tensor) -> Tensor:
    """[n * block_size, heads, 1] of a plane [num_blocks, heads, block_size]."""
    return plane[block_ids].transpose(1, 2).flatten(0, 1)[..., None]


def block_slots(rows: Tensor, block_size: int) -> Tensor:
    """int64 [C * block_size], every slot of the blocks int64 [C]."""
    offsets = rows.new_ones(block_size).cumsum(0) - 1
    return (rows[:, None] * block_size + offsets).flatten()


def _pack(dtype: str) -> int:
    return max(1, 4 // DTYPE_BYTES[dtype])
