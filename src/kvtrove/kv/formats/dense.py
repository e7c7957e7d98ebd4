"""Dense K and V: the values themselves in bf16, fp16 or fp32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtrove.kv.formats.codec import TokenCodec
from kvtrove.kv.formats.layout import Layout, data_plane, read, write
from kvtrove.kv.plane import Plane
from kvtrove.kv.spec import KVFormat, Planes

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Dense(TokenCodec):
    """One plane of elements of `dtype`."""

    dtype: str

    @property
    def id(self) -> str:
        return self.id_of(self.dtype)

    def planes(self, heads: int, dim: int, block_size: int) -> tuple[Plane, ...]:
        return (data_plane(self.side, self.layout, self.dtype, heads, dim, block_size),)

    def encode(self, x: Tensor, view: Planes, slots: Tensor) -> None:
        write(self.side, x.to(view["data"].dtype), view["data"], slots)

    def decode(self, view: Planes, rows: Tensor) -> Tensor:
        return read(self.side, view["data"], rows)


def dense(dtype: str, layout: Layout = "tiled") -> KVFormat:
    """K and V in `dtype`."""
    return KVFormat(Dense("k", dtype, layout=layout), Dense("v", dtype, layout=layout))


ECHO = dense("int32", "plain")
"""The echo format of the tests: with one head of one element, a token's K is its id and its V its position."""
