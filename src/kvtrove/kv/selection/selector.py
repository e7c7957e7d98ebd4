"""Selectors: what a block says of its keys, and what a query can promise itself of it.

    block       | 0: summary | 1: summary | 2: summary | 3: the query's own |
    promise     |    3.1     |    0.2     |    7.4     |      always        |      read: 2, 3, then 0

A summary is made once, by the step that completes a block, and lies in planes of the block's row: it moves, spills and
is found with its block. The choice is one for all query heads of a key head, by the best promise among them, so that a
block is read once for them. It depends on the query, its position and the blocks before it alone: prompts choose as
answers do, so that neither chunks, hits nor preemption show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from kvtrove.kv.plane import Plane

if TYPE_CHECKING:
    from torch import Tensor

    from kvtrove.kv.spec import LayerKV, Planes


class Selector(Protocol):
    """A frozen dataclass. `id` ("quest=1024/2") stands for which blocks queries read: it enters the fingerprint."""

    @property
    def id(self) -> str: ...
    @property
    def word(self) -> str:
        """As recipes name it, for people."""
        ...

    def room(self, older: int, block_size: int) -> int:
        """How many of `older` blocks a query reads beside its own; never less for more of them."""
        ...

    def problems(self, layer: LayerKV, block_size: int) -> list[str]:
        """Why it cannot choose among blocks of such a layer; empty when it can."""
        ...

    def planes(self, layer: LayerKV, block_size: int) -> tuple[Plane, ...]:
        """Its summaries in one block."""
        ...

    def summarise(self, k: Tensor, view: Planes, rows: Tensor) -> None:
        """Write the summaries of the full blocks in the rows int64 [C]. k: their keys as attention reads them, float32
        [C, block_size, heads, k_dim]. view: all planes of the layer."""
        ...

    def promise(self, q: Tensor, view: Planes, rows: Tensor) -> Tensor:
        """[B, heads, c, N] of the blocks int64 [B, N], in the dtype of q [B, heads, shared, c, k_dim]: the best of the
        `shared` query heads.
        """
        ...
