"""Quest (arXiv 2406.10774): blocks by the bounds of their keys.

    low, high [heads, k_dim]    the smallest and the largest value of each element among a block's keys, side by side
    promise                     sum over elements of max(q * low, q * high): no key within the bounds scores more

Bounds are bfloat16, rounded outwards so that they stay bounds: 1/32 of the bytes of keys and values in 16 bits, with
blocks of 32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtrove.kv.plane import Plane

if TYPE_CHECKING:
    from torch import Tensor

    from kvtrove.kv.spec import LayerKV, Planes

BOUNDS = "k_bounds"


@dataclass(frozen=True)
class Quest:
    """tokens: of the blocks that a query reads, its own among them."""

    tokens: int

    @property
    def id(self) -> str:
        return f"{self.word}/2"

    @property
    def word(self) -> str:
        return f"quest={self.tokens}"

    def room(self, older: int, block_size: int) -> int:
        return min(older, self.tokens // block_size - 1)

    def problems(self, layer: LayerKV, block_size: int) -> list[str]:
        if self.tokens >= 2 * block_size:
            return []
        return [f"{self.word} is less than two blocks of {block_size}, the open one and another"]

    def planes(self, layer: LayerKV, block_size: int) -> tuple[Plane, ...]:
        return (Plane(BOUNDS, "bfloat16", (layer.heads, 2, layer.k_dim)),)

    def summarise(self, k: Tensor, view: Planes, rows: Tensor) -> None:
        view[BOUNDS][rows, :, 0] = -_rounded_up(-k.amin(1))
        view[BOUNDS][rows, :, 1] = _rounded_up(k.amax(1))

    def promise(self, q: Tensor, view: Planes, rows: Tensor) -> Tensor:
        low, high = view[BOUNDS][rows].to(q.dtype).movedim(2, 1).unbind(3)  # [B, heads, N, k_dim]
        up, down = q.clamp(min=0).flatten(2, 3), q.clamp(max=0).flatten(2, 3)
        best: Tensor = (up @ high.mT + down @ low.mT).reshape(*q.shape[:4], -1).amax(2)
        return best


def _rounded_up(x: Tensor) -> Tensor:
    """The least bfloat16 that is not below x, float32: its upper half, which for positive numbers may have to grow."""
    bits = x.contiguous().view(x.new_empty(0).int().dtype)
    whole = (bits + (bits >= 0).int() * 0xFFFF) & ~0xFFFF
    return whole.view(x.dtype).bfloat16()
