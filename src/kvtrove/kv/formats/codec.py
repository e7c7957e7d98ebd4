"""What codecs have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtrove.kv.formats.layout import Layout, block_slots
from kvtrove.kv.spec import Planes, Rope, Side

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TokenCodec:
    """Base of codecs that encode every token by itself: one slot is one token, so that appending, copying, sharing and
    sealing need nothing else. Subclasses state `id`, `planes`, `encode` and `decode`."""

    side: Side
    layout: Layout = field(default="tiled", kw_only=True)

    @property
    def whole_block(self) -> bool:
        return False

    @property
    def rope(self) -> Rope:
        return "post"

    def problems(self, heads: int, dim: int, block_size: int) -> list[str]:
        return []

    def encode(self, x: Tensor, view: Planes, slots: Tensor) -> None:
        raise NotImplementedError

    def seal(self, x: Tensor, view: Planes, rows: Tensor) -> None:
        self.encode(x.flatten(0, 1), view, block_slots(rows, x.shape[1]))

    def id_of(self, word: str, version: int = 1) -> str:
        """An id that names the layout where it is not the usual one."""
        return f"{word}{'' if self.layout == 'tiled' else '-' + self.layout}/{version}"
