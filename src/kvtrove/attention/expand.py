"""Low rank on the CPU: the blocks that a step reads become numbers in a scratch, which dense kernels then read.

    coefficients [n, heads * rank]  x  basis [heads * dim, heads * rank]  ->  rotated  ->  dense blocks

A basis joins up to four heads, so its product takes tens of times what attention of one query takes. It runs on whole
pieces of a context at the full speed of matrix units, which tiles of 16 tokens for one head would never reach; and keys
must be rotated behind it. The scratch is one for all layers of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvtrove.attention.backend import AttentionBatch, AttentionLayer, Reach, Rotation
from kvtrove.attention.paged import shape_of
from kvtrove.kernels.attention import (
    AttentionKernel,
    PagedBatch,
    PagedLayer,
    PagedShape,
    PagedSide,
    paged_batch,
    paged_layer,
)
from kvtrove.kernels.linear import PackedWeights
from kvtrove.kv.formats.layout import block_slots
from kvtrove.kv.formats.lowrank import LowRank
from kvtrove.kv.retention import Retention, live_blocks
from kvtrove.kv.spec import Codec, KVFormat, Side

SIDES: tuple[Side, Side] = ("k", "v")
MAX_TOKENS = 1 << 12
"""Tokens of several sequences that are expanded together; one sequence alone may have more."""
PIECE = 1024
"""Tokens whose coefficients, products and rotated keys stay in the caches."""


@dataclass(frozen=True, eq=False)
class Expansion:
    """Consecutive sequences of a step, and the n blocks that they read, one after the other in a scratch.

    rows: their tokens in the step. batch: of these, with tables of the scratch. slots, positions: int64
    [n, block_size], of the tokens in the pool.
    """

    rows: slice
    batch: PagedBatch
    slots: Tensor
    positions: Tensor
    _planes: dict[tuple[Side, torch.dtype, int, int], Tensor] = field(default_factory=dict)
    _layers: dict[tuple[PagedShape, torch.dtype, int, int], PagedLayer] = field(default_factory=dict)
    _turns: dict[Rotation, list[Rotation]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, batch: AttentionBatch, sequences: range, blocks: list[NDArray[np.int64]], group: int, size: int
    ) -> Expansion:
        """blocks: indices of those that each of the sequences reads."""
        starts = [batch.start[s] for s in sequences]
        rows = slice(batch.query_start[sequences.start], batch.query_start[sequences.stop])
        query_start = [batch.query_start[s] - rows.start for s in range(sequences.start, sequences.stop + 1)]
        table = np.full((len(sequences), max(int(b.max(initial=0)) for b in blocks) + 1), -1, np.int32)
        held, at = batch.groups[group].block_table, 0
        ids = torch.cat([held[s][torch.from_numpy(b)] for s, b in zip(sequences, blocks, strict=True)]).long()
        for row, indices in zip(table, blocks, strict=True):
            row[indices] = np.arange(at, at + len(indices))
            at += len(indices)
        numbers = torch.from_numpy(np.concatenate(blocks))
        slots, positions = (block_slots(x, size).view(-1, size) for x in (ids, numbers))
        reads = paged_batch(query_start, starts, table, np.zeros(query_start[-1], np.int64))
        return cls(rows, reads, slots, positions)

    def into(
        self, layer: AttentionLayer, expander: Expander, dtype: torch.dtype, rotate: Rotation | None
    ) -> PagedLayer:
        """The blocks as numbers of `dtype`, keys rotated; read until the next call."""
        to = self._scratch(layer, dtype)
        keys, values = (self._plane(side, dtype, layer) for side in SIDES)
        for i, piece in enumerate(self._pieces()):
            k, v = expander.numbers(layer, self.slots[piece].flatten(), dtype)
            k = k if rotate is None else self._turned(rotate)[i](k)
            for x, plane in ((k, keys), (v, values)):
                plane[piece] = x.unflatten(0, (-1, layer.block_size)).transpose(1, 2)
        return to

    def _pieces(self) -> list[slice]:
        blocks, size = self.slots.shape
        step = max(1, PIECE // size)
        return [slice(at, min(at + step, blocks)) for at in range(0, blocks, step)]

    def _turned(self, rotate: Rotation) -> list[Rotation]:
        """The rotation of each piece."""
        if rotate not in self._turns:
            self._turns[rotate] = [rotate.at(self.positions[piece].flatten()) for piece in self._pieces()]
        return self._turns[rotate]

    def _scratch(self, layer: AttentionLayer, dtype: torch.dtype) -> PagedLayer:
        key = shape_of(layer), dtype, layer.k_dim, layer.v_dim
        if key not in self._layers:
            name, dims = str(dtype).removeprefix("torch."), (layer.k_dim, layer.v_dim)
            k, v = (
                PagedSide(name, False, dim, self._plane(side, dtype, layer))
                for side, dim in zip(SIDES, dims, strict=True)
            )
            self._layers[key] = paged_layer(k, v, key[0])
        return self._layers[key]

    def _plane(self, side: Side, dtype: torch.dtype, layer: AttentionLayer) -> Tensor:
        key = side, dtype, layer.kv_heads, layer.k_dim if side == "k" else layer.v_dim
        if key not in self._planes:
            blocks, size = self.slots.shape
            self._planes[key] = torch.empty(max(1, blocks), key[2], size, key[3], dtype=dtype)
        return self._planes[key]


def expansions(
    batch: AttentionBatch, group: int, rule: Retention, block_size: int, reach: Reach
) -> Iterator[Expansion]:
    """All sequences of a step, as many at a time as `MAX_TOKENS` allow."""
    first, tokens = 0, 0
    blocks: list[NDArray[np.int64]] = []
    for s in range(len(batch.start)):
        read = _blocks_read(batch, s, rule, block_size, reach.begin)
        if blocks and tokens + len(read) * block_size > MAX_TOKENS:
            yield Expansion.of(batch, range(first, s), blocks, group, block_size)
            first, blocks, tokens = s, [], 0
        blocks.append(read)
        tokens += len(read) * block_size
    if blocks:
        yield Expansion.of(batch, range(first, len(batch.start)), blocks, group, block_size)


def _blocks_read(batch: AttentionBatch, s: int, rule: Retention, size: int, begin: int) -> NDArray[np.int64]:
    start = batch.start[s]
    stop = start + batch.query_start[s + 1] - batch.query_start[s]
    if stop == start:
        return np.empty(0, np.int64)
    older = (index for index in live_blocks(rule, start, size) if (index + 1) * size > begin)
    return np.array(sorted({*older, *range(start // size, -(-stop // size))}), np.int64)


@dataclass(frozen=True, eq=False)
class Basis:
    """Vectors of coefficients: a product for each group of heads, in bf16.

    is_split: weights are two numbers of bf16 each, which hold 16 bits of them: for vectors in float32.
    """

    products: tuple[PackedWeights, ...]
    is_split: bool

    @classmethod
    def of(cls, codec: LowRank, heads: int, is_split: bool, isa: str) -> Basis:
        products = []
        for matrix in codec.expansion(torch.empty(0, heads, 0)):
            high = matrix.bfloat16()
            matrix = torch.cat([high.float(), matrix - high.float()], 1) if is_split else matrix
            products.append(PackedWeights(matrix.shape[0], matrix.shape[1], isa=isa))
            products[-1].fill(0, matrix.contiguous())
        return cls(tuple(products), is_split)

    def vectors(self, coefficients: Tensor, dtype: torch.dtype) -> Tensor:
        """[n, heads, dim] of coefficients float32 [heads, n, rank]."""
        heads, n, rank = coefficients.shape
        groups = len(self.products)
        grouped = coefficients.new_empty(groups, n, heads // groups, rank, dtype=dtype)
        grouped.copy_(coefficients.view(groups, -1, n, rank).transpose(1, 2))
        rows = grouped.flatten(2)
        rows = torch.cat([rows, rows], 2) if self.is_split else rows
        if groups == 1:
            return self.products[0].multiply(rows[0]).view(n, heads, -1)
        found = rows.new_empty(n, groups, self.products[0].outputs)
        for group, product in enumerate(self.products):
            found[:, group] = product.multiply(rows[group])
        return found.view(n, heads, -1)


class Expander:
    """Reads the tokens of layers that store coefficients.

    paged: a layer as kernels know it, its pool of coefficients. isa: as for `kernels.isa`.
    """

    def __init__(self, kernel: AttentionKernel, isa: str, paged: Callable[[AttentionLayer], PagedLayer]) -> None:
        self.kernel, self.isa, self.paged = kernel, isa, paged
        self._bases: dict[tuple[LowRank, int, bool], Basis] = {}

    def numbers(self, layer: AttentionLayer, slots: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys, as they were before their rotation if they are stored so, and values: [n, kv_heads, dim] in `dtype`."""
        sides = (True, layer.format.k, layer.k_dim), (False, layer.format.v, layer.v_dim)
        k, v = (self._numbers(layer, *side, slots, dtype) for side in sides)
        return k, v

    def _numbers(
        self, layer: AttentionLayer, keys: bool, codec: Codec | None, dim: int, slots: Tensor, dtype: torch.dtype
    ) -> Tensor:
        heads, n, stored = layer.kv_heads, len(slots), codec.rank if isinstance(codec, LowRank) else dim
        x = self.kernel.read(self.paged(layer), keys, slots, torch.empty(heads, n, stored))
        if not isinstance(codec, LowRank):
            return x.new_empty(n, heads, dim, dtype=dtype).copy_(x.transpose(0, 1))
        key = codec, heads, dtype == torch.float32
        if key not in self._bases:
            self._bases[key] = Basis.of(*key, self.isa)
        return self._bases[key].vectors(x, dtype)


def is_low_rank(stored: KVFormat) -> bool:
    return any(isinstance(codec, LowRank) for codec in stored.sides)


def reasons_against_low_rank(layer: AttentionLayer) -> list[str]:
    """Why such a layer is not expanded."""
    reasons = []
    if layer.format.whole_block:
        reasons.append("lowrank beside a format of whole blocks has no CPU kernel")
    if layer.first is not None and is_low_rank(layer.first.format):
        reasons.append("first tokens in lowrank have no CPU kernel")
    if layer.format.select or layer.cells:
        reasons.append("lowrank has no CPU kernel where heads or queries read some blocks of all")
    return reasons
