"""Four bits: codes with scale and zero, per token and head. A quarter of the bytes of bf16, and a little more.

    int4    scale and zero for every 32 elements                          4 + 32 / 32 = 5 bits
    int4r   the vector is turned first (`codes.turn`), which spreads outliers over it: one scale and zero for all of it
            4 + 32 / dim bits, 4.25 at dim 128. Queries and results are turned where they are few: the dot product of
            turned vectors is that of the vectors, and a turned sum of values is turned back.

Of K turned, then rounded: QuaRot (arXiv 2404.00456); vLLM's int4_per_token_head has the same arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtrove.kv.formats.codec import TokenCodec
from kvtrove.kv.formats.codes import dequantise, pack, quantise, turn, turn_back, unpack
from kvtrove.kv.formats.layout import data_plane, read, read_scales, write, write_scales
from kvtrove.kv.plane import Plane
from kvtrove.kv.spec import Planes

if TYPE_CHECKING:
    from torch import Tensor

BITS, GROUP = 4, 32


@dataclass(frozen=True)
class Int4Rotated(TokenCodec):
    """Planes "scale" and "zero", float16 [heads, block_size], beside the codes uint8, laid out as int8 of dim / 2."""

    @property
    def id(self) -> str:
        return self.id_of("int4r")

    def problems(self, heads: int, dim: int, block_size: int) -> list[str]:
        return [] if dim % 2 == 0 else [f"int4r needs an even number of elements, not {dim}"]

    def planes(self, heads: int, dim: int, block_size: int) -> tuple[Plane, ...]:
        return (
            data_plane(self.side, self.layout, "uint8", heads, dim * BITS // 8, block_size),
            Plane("scale", "float16", (heads, block_size)),
            Plane("zero", "float16", (heads, block_size)),
        )

    def encode(self, x: Tensor, view: Planes, slots: Tensor) -> None:
        codes, scale, zero = quantise(turn(x), BITS)
        write(self.side, pack(codes, BITS), view["data"], slots)
        write_scales(scale[..., 0], view["scale"], slots)
        write_scales(zero[..., 0], view["zero"], slots)

    def decode(self, view: Planes, rows: Tensor) -> Tensor:
        """float32, turned back."""
        codes = unpack(read(self.side, view["data"], rows), BITS)
        return turn_back(dequantise(codes, read_scales(view["scale"], rows), read_scales(view["zero"], rows)))


@dataclass(frozen=True)
class Int4(TokenCodec):
    """Planes "scale" and "zero", float16 [heads, dim / 32, block_size], beside the codes."""

    @property
    def id(self) -> str:
        return self.id_of("int4")

    def problems(self, heads: int, dim: int, block_size: int) -> list[str]:
        return [] if dim % GROUP == 0 else [f"int4 needs a multiple of {GROUP} elements, not {dim}; int4r does not"]

    def planes(self, heads: int, dim: int, block_size: int) -> tuple[Plane, ...]:
        shared = (heads, dim // GROUP, block_size)
        return (
            data_plane(self.side, self.layout, "uint8", heads, dim * BITS // 8, block_size),
            Plane("scale", "float16", shared),
            Plane("zero", "float16", shared),
        )

    def encode(self, x: Tensor, view: Planes, slots: Tensor) -> None:
        codes, scale, zero = quantise(_groups(x), BITS)
        write(self.side, pack(codes.flatten(-2), BITS), view["data"], slots)
        write_scales(scale.flatten(1), view["scale"].flatten(1, 2), slots)
        write_scales(zero.flatten(1), view["zero"].flatten(1, 2), slots)

    def decode(self, view: Planes, rows: Tensor) -> Tensor:
        """float32."""
        codes = _groups(unpack(read(self.side, view["data"], rows), BITS))
        scale, zero = (
            read_scales(view[name].flatten(1, 2), rows).view(*codes.shape[:-1], 1) for name in ("scale", "zero")
        )
        return dequantise(codes, scale, zero).flatten(-2)


def _groups(x: Tensor) -> Tensor:
    """[..., dim] -> [..., dim / 32, 32]."""
    return x.reshape(*x.shape[:-1], -1, GROUP)
