"""int8 K/V: one scale per token, head and K or V. Half the bytes of bf16, read as int8.

    x [head_dim]  ->  s = float16(max|x| / 127, rounded up),  round(x / s) in -127 .. 127

The error of an element is at most s / 2, 0.4 % of the largest in its vector. A token's bytes depend on that token only,
so blocks need no tail format. Kernels multiply the integers and apply the scales to scores and weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kvtrove.kv.formats.layout import Layout, kv_planes, read, write
from kvtrove.kv.spec import KVFormat, Plane

if TYPE_CHECKING:
    from torch import Tensor

MOST = 127.0
SCALE_MAX = 65504.0  # the largest float16
# Rounding to float16 moves a scale by at most 2^-11 of itself, or by 2^-25 where it is subnormal.
ROUND_UP, ROUND_UP_SMALL = 1 + 2**-10, 2**-24


@dataclass(frozen=True)
class Int8Format:
    """Planes k_scale and v_scale, float16 [kv_heads, block_size], lie beside the integers."""

    layout: Layout = "tiled"

    @property
    def name(self) -> str:
        return "int8"

    @property
    def lossless_for(self) -> tuple[str, ...]:
        return ()

    @property
    def tail(self) -> KVFormat | None:
        return None

    @property
    def rope(self) -> Literal["post", "pre"]:
        return "post"

    def planes(self, kv_heads: int, head_dim: int, block_size: int) -> tuple[Plane, ...]:
        scales = (kv_heads, block_size)
        return (
            *kv_planes(self.layout, "int8", kv_heads, head_dim, block_size),
            Plane("k_scale", "float16", scales),
            Plane("v_scale", "float16", scales),
        )

    def encode(self, k: Tensor, v: Tensor, view: Mapping[str, Tensor], slots: Tensor) -> None:
        block_size = view["k_scale"].shape[2]
        block, offset = slots // block_size, slots % block_size
        rounded = []
        for name, x in (("k", k), ("v", v)):
            integers, scales = _quantise(x)
            view[f"{name}_scale"][block, :, offset] = scales
            rounded.append(integers)
        write(rounded[0], rounded[1], view["k"], view["v"], slots)

    def decode(self, view: Mapping[str, Tensor], block_ids: Tensor) -> tuple[Tensor, Tensor]:
        """float32 K and V."""
        k, v = read(view["k"], view["v"], block_ids)
        scale = {x: view[f"{x}_scale"][block_ids].transpose(1, 2).flatten(0, 1)[..., None].float() for x in "kv"}
        return k.float() * scale["k"], v.float() * scale["v"]


def _quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [T, heads, dim] and float16 [T, heads] of x [T, heads, dim]; computed in float32."""
    wide = x.float()
    scales = ((wide.abs().amax(-1) / MOST) * ROUND_UP + ROUND_UP_SMALL).clamp(max=SCALE_MAX).half()
    return (wide / scales[..., None].float()).round().clamp(-MOST, MOST).char(), scales
