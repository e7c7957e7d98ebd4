"""How the elements of K and V lie in a block: an order that vector and matrix instructions read without shuffling.

    tiled   K [kv_heads, block_size / 16, head_dim / pack, 16, pack]    V [kv_heads, block_size / pack, head_dim, pack]
    plain   K [kv_heads, block_size, head_dim]                          V [kv_heads, block_size, head_dim]

`pack` neighbours fill 32 bits: 2 of 16-bit elements, 4 of int8. In a product, 16 tokens of K (or elements of V) are
then one load, their scores come out side by side, and both are operands as matrix units (AMX) take them. The layout is
the same on every machine, so that stored blocks travel. Blocks that hold no whole tiles are plain.

Tensors are used by their methods alone, so that this needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from kvtrove.kv.spec import DTYPE_BYTES, Plane

if TYPE_CHECKING:
    from torch import Tensor

Layout = Literal["tiled", "plain"]
TILE = 16  # tokens


def is_tiled(layout: Layout, dtype: str, head_dim: int, block_size: int) -> bool:
    """Whether such blocks are tiled: they consist of whole tiles, and vectors of whole packs."""
    return layout == "tiled" and block_size % TILE == 0 and head_dim % _pack(dtype) == 0


def kv_planes(layout: Layout, dtype: str, kv_heads: int, head_dim: int, block_size: int) -> tuple[Plane, Plane]:
    """Planes "k" and "v" of one block."""
    if not is_tiled(layout, dtype, head_dim, block_size):
        plain = (kv_heads, block_size, head_dim)
        return Plane("k", dtype, plain), Plane("v", dtype, plain)
    pack = _pack(dtype)
    return (
        Plane("k", dtype, (kv_heads, block_size // TILE, head_dim // pack, TILE, pack)),
        Plane("v", dtype, (kv_heads, block_size // pack, head_dim, pack)),
    )


def write(k: Tensor, v: Tensor, k_plane: Tensor, v_plane: Tensor, slots: Tensor) -> None:
    """Put k, v [T, kv_heads, head_dim], of the planes' dtype, into slots int64 [T]; planes: [num_blocks, *shape]."""
    if k_plane.dim() == 4:
        block_size = k_plane.shape[2]
        block, offset = slots // block_size, slots % block_size
        k_plane[block, :, offset] = k
        v_plane[block, :, offset] = v
        return
    pack = k_plane.shape[5]
    block_size = k_plane.shape[2] * TILE
    block, offset = slots // block_size, slots % block_size
    k_plane[block, :, offset // TILE, :, offset % TILE] = k.reshape(*k.shape[:-1], k.shape[-1] // pack, pack)
    v_plane[block, :, offset // pack, :, offset % pack] = v


def read(k_plane: Tensor, v_plane: Tensor, block_ids: Tensor) -> tuple[Tensor, Tensor]:
    """K and V of blocks int64 [n], each [n * block_size, kv_heads, head_dim] of the planes' dtype."""
    k, v = k_plane[block_ids], v_plane[block_ids]
    if k_plane.dim() == 4:
        return k.transpose(1, 2).flatten(0, 1), v.transpose(1, 2).flatten(0, 1)
    k = k.permute(0, 2, 4, 1, 3, 5).flatten(4, 5).flatten(0, 2)  # [n, tiles, 16, heads, dim / pack, pack]
    return k, v.permute(0, 2, 4, 1, 3).flatten(0, 2)


def _pack(dtype: str) -> int:
    return max(1, 4 // DTYPE_BYTES[dtype])
