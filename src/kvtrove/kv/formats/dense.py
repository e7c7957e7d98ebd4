"""Dense K/V: the values themselves in bf16, fp16 or fp32, one plane each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kvtrove.kv.formats.layout import Layout, kv_planes, read, write
from kvtrove.kv.spec import KVFormat, Plane

if TYPE_CHECKING:
    from torch import Tensor

_HOLDS = {
    "float32": ("float32", "float16", "bfloat16"),
    "float16": ("float16",),
    "bfloat16": ("bfloat16",),
    "int32": ("int32",),
}


@dataclass(frozen=True)
class DenseFormat:
    """One slot is one token: appending, copying and sharing need nothing else, so there is no tail format."""

    dtype: str
    layout: Layout = "tiled"

    @property
    def name(self) -> str:
        return self.dtype

    @property
    def lossless_for(self) -> tuple[str, ...]:
        return _HOLDS[self.dtype]

    @property
    def tail(self) -> KVFormat | None:
        return None

    @property
    def rope(self) -> Literal["post", "pre"]:
        return "post"

    def planes(self, kv_heads: int, head_dim: int, block_size: int) -> tuple[Plane, ...]:
        return kv_planes(self.layout, self.dtype, kv_heads, head_dim, block_size)

    def encode(self, k: Tensor, v: Tensor, view: Mapping[str, Tensor], slots: Tensor) -> None:
        write(k.to(view["k"].dtype), v.to(view["v"].dtype), view["k"], view["v"], slots)

    def decode(self, view: Mapping[str, Tensor], block_ids: Tensor) -> tuple[Tensor, Tensor]:
        return read(view["k"], view["v"], block_ids)


ECHO = DenseFormat("int32", "plain")
"""The echo format of the tests: with one head of one element, a token's K is its id and its V its position."""
