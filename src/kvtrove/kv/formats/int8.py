"""int8: one scale per token and head. Half the bytes of bf16, read as int8.

    x [dim]  ->  s = float16(max|x| / 127, rounded up),  round(x / s) in -127 .. 127

The error of an element is at most s / 2, 0.4 % of the largest in its vector. Kernels multiply the integers and apply
the scales to scores and weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtrove.kv.formats.codec import TokenCodec
from kvtrove.kv.formats.layout import Layout, data_plane, read, read_scales, write, write_scales
from kvtrove.kv.plane import Plane
from kvtrove.kv.spec import KVFormat, Planes

if TYPE_CHECKING:
    from torch import Tensor

MOST = 127.0
SCALE_MAX = 65504.0  # the largest float16
# Rounding to float16 moves a scale by at most 2^-11 of itself, or by 2^-25 where it is subnormal.
ROUND_UP, ROUND_UP_SMALL = 1 + 2**-10, 2**-24


@dataclass(frozen=True)
class Int8(TokenCodec):
    """Plane "scale", float16 [heads, block_size], lies beside the integers."""

    @property
    def id(self) -> str:
        return self.id_of("int8")

    def planes(self, heads: int, dim: int, block_size: int) -> tuple[Plane, ...]:
        return (
            data_plane(self.side, self.layout, "int8", heads, dim, block_size),
            Plane("scale", "float16", (heads, block_size)),
        )

    def encode(self, x: Tensor, view: Planes, slots: Tensor) -> None:
        """Computed in float32."""
        wide = x.float()
        scales = scales_of(wide, MOST)
        write(self.side, (wide / scales[..., None].float()).round().clamp(-MOST, MOST).char(), view["data"], slots)
        write_scales(scales, view["scale"], slots)

    def decode(self, view: Planes, rows: Tensor) -> Tensor:
        """float32."""
        return read(self.side, view["data"], rows).float() * read_scales(view["scale"], rows).float()


def scales_of(x: Tensor, most: float) -> Tensor:
    """float16 [T, heads] of x float32 [T, heads, dim], rounded up so that |x / scale| stays within `most`."""
    return ((x.abs().amax(-1) / most) * ROUND_UP + ROUND_UP_SMALL).clamp(max=SCALE_MAX).half()


def int8(layout: Layout = "tiled") -> KVFormat:
    """K and V in int8."""
    return KVFormat(Int8("k", layout=layout), Int8("v", layout=layout))
