"""Double Sparsity (arXiv 2408.07092): blocks by a few channels of their keys, which a calibration found to matter most.

    labels [heads, r, block_size]   of every key of a block, the r channels with the largest mean |q * k|, in bfloat16
    promise                         the largest product of a query and a key of the block, in these channels alone

The paper reads single tokens; whole blocks are what memory is read in. One token of `part` is read, by one channel of
`part`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtrove.kv.formats.calibration import Calibration
from kvtrove.kv.plane import Plane

if TYPE_CHECKING:
    from torch import Tensor

    from kvtrove.kv.spec import LayerKV, Planes

LABELS = "k_labels"
LEAST_TOKENS, LEAST_CHANNELS = 256, 4
"""Shorter contexts are read as a whole, and fewer channels say too little of heads of 64 elements and less."""


@dataclass(frozen=True)
class DoubleSparsity:
    """name: "k.0.channels", of the layer's channels in the calibration."""

    part: int
    name: str = ""
    digest: str = ""
    calibration: Calibration | None = field(default=None, compare=False, repr=False)

    @property
    def id(self) -> str:
        return f"{self.word}@{self.digest[:16]}/1"

    @property
    def word(self) -> str:
        return f"doublesparsity=1/{self.part}"

    def least(self, block_size: int) -> int:
        """Blocks that are read beside the own one, whatever the part."""
        return max(1, LEAST_TOKENS // block_size - 1)

    def room(self, older: int, block_size: int) -> int:
        return min(older, max(self.least(block_size), -(-older // self.part)))

    def num_channels(self, k_dim: int) -> int:
        return min(k_dim, max(LEAST_CHANNELS, k_dim // self.part))

    def problems(self, layer: LayerKV, block_size: int) -> list[str]:
        shape = {} if self.calibration is None else self.calibration.shapes
        if shape.get(self.name) == (layer.heads, layer.k_dim):
            return []
        return [
            f"the calibration has no channels for {layer.heads} heads of {layer.k_dim} elements under {self.name!r}: "
            "it is that of another model, or an older one; make it with `kvtrove calibrate MODEL --out FILE`"
        ]

    def planes(self, layer: LayerKV, block_size: int) -> tuple[Plane, ...]:
        return (Plane(LABELS, "bfloat16", (layer.heads, self.num_channels(layer.k_dim), block_size)),)

    def channels(self, like: Tensor) -> Tensor:
        """int64 [heads, r] in ascending order, on the device of `like` [..., k_dim]."""
        assert self.calibration is not None, "checked by `problems`"
        matter = self.calibration.tensor(self.name, like)
        best = matter.sort(dim=-1, descending=True, stable=True).indices
        return best[:, : self.num_channels(matter.shape[1])].sort(-1).values

    def summarise(self, k: Tensor, view: Planes, rows: Tensor) -> None:
        keys = k.permute(0, 2, 3, 1)  # [C, heads, k_dim, block_size]
        channels = self.channels(k)[None, :, :, None].expand(len(keys), -1, -1, keys.shape[3])
        view[LABELS][rows] = keys.gather(2, channels).bfloat16()

    def promise(self, q: Tensor, view: Planes, rows: Tensor) -> Tensor:
        labels = view[LABELS][rows].to(q.dtype).permute(0, 2, 3, 1, 4)  # [B, heads, r, N, block_size]
        asked = q.gather(-1, self.channels(q)[None, :, None, None].expand(*q.shape[:4], -1))
        best: Tensor = (asked.flatten(2, 3) @ labels.flatten(3)).reshape(*q.shape[:4], *labels.shape[3:]).amax((2, 5))
        return best
