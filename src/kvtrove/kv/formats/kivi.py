"""KIVI (arXiv 2402.02750): K per channel, V per token, in 2 or 4 bits, without rotation or calibration.

K [block_size, dim]   scale and zero for each of the dim channels, over the tokens of a block: channels of keys differ
                      much more than tokens do. A block is encoded when it is full: bits + 32 / block_size
V [block_size, dim]   scale and zero for each token: bits + 32 / dim
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtrove.kv.formats.codec import TokenCodec
from kvtrove.kv.formats.codes import dequantise, pack, quantise, unpack
from kvtrove.kv.formats.layout import block_slots, data_plane, read, read_scales, write, write_scales
from kvtrove.kv.plane import Plane
from kvtrove.kv.spec import Planes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Kivi(TokenCodec):
    """Planes "scale" and "zero", float16 [heads, dim] for K and [heads, block_size] for V, beside the codes uint8."""

    bits: int = 2

    @property
    def id(self) -> str:
        return self.id_of(f"kivi={self.bits}")

    @property
    def whole_block(self) -> bool:
        return True

    def problems(self, heads: int, dim: int, block_size: int) -> list[str]:
        fill = 8 // self.bits
        return [] if dim % fill == 0 else [f"kivi={self.bits} needs a multiple of {fill} elements, not {dim}"]

    def planes(self, heads: int, dim: int, block_size: int) -> tuple[Plane, ...]:
        shared = (heads, dim if self.side == "k" else block_size)
        return (
            data_plane(self.side, self.layout, "uint8", heads, dim * self.bits // 8, block_size),
            Plane("scale", "float16", shared),
            Plane("zero", "float16", shared),
        )

    def seal(self, x: Tensor, view: Planes, rows: Tensor) -> None:
        slots = block_slots(rows, x.shape[1])
        if self.side == "k":
            codes, scale, zero = quantise(x.permute(0, 2, 3, 1), self.bits)  # [C, heads, dim, block_size]
            codes = codes.permute(0, 3, 1, 2)
            view["scale"][rows], view["zero"][rows] = scale[..., 0], zero[..., 0]
        else:
            codes, scale, zero = quantise(x, self.bits)
            write_scales(scale.flatten(0, 1)[..., 0], view["scale"], slots)
            write_scales(zero.flatten(0, 1)[..., 0], view["zero"], slots)
        write(self.side, pack(codes.flatten(0, 1), self.bits), view["data"], slots)

    def decode(self, view: Planes, rows: Tensor) -> Tensor:
        """float32."""
        codes = unpack(read(self.side, view["data"], rows), self.bits)
        if self.side == "v":
            return dequantise(codes, read_scales(view["scale"], rows), read_scales(view["zero"], rows))
        scale, zero = (view[name][rows][:, None] for name in ("scale", "zero"))  # [n, 1, heads, dim]
        blocks = codes.reshape(len(rows), -1, *codes.shape[1:])
        return dequantise(blocks, scale, zero).flatten(0, 1)
