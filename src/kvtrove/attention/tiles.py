"""Which keys a step's queries read: sequences of a batch cut into tiles that one matrix product can serve.

    positions of one sequence       0        8        16       24      29
    blocks of 8 in its table        | -      | b7     | b2     | b5    |      -: no query needs it, never touched
    keys of the tile                         |8     15|16    23|24   31|
    first/last key of query 21               ^10            ^21               window of 12

A sequence with several new tokens is a tile of its own. Sequences with one new token (decodes) share a tile when they
hold about equally many blocks: shorter ones are padded with keys that no query sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvtrove.attention.backend import EVERYTHING, AttentionBatch, Reach
from kvtrove.kv.retention import Retention

MAX_KEYS = 1 << 13
"""Keys gathered for a tile of several sequences; one sequence alone may have more."""
NOWHERE = 1 << 40
"""Position of padding: beyond every range."""

Spans = list[tuple[int, int]]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tile:
    """B sequences with c new tokens each, reading up to L keys each (a multiple of the block size).

    rows: int64 [B * c] of the step's flat tokens. block_ids: int64 [B * L / block_size]; padding repeats some block.
    positions: int64 [B, L] of the keys. spans: int64 [2, B, c, R], half-open ranges of positions that a query reads.
    seen: bool [B, L], keys that some query reads; the others may hold anything.
    first, last: per query, on the host, the range of keys that covers its spans, over all sequences of the tile.
    """

    rows: Tensor
    block_ids: Tensor
    positions: Tensor
    spans: Tensor
    seen: Tensor
    first: Ints
    last: Ints

    @property
    def num_sequences(self) -> int:
        return self.positions.shape[0]

    @property
    def num_queries(self) -> int:
        return len(self.first)

    def mask(self, queries: slice, keys: slice) -> Tensor:
        """bool [B, queries, keys]: which key each query reads."""
        start, stop = self.spans[:, :, queries, None]  # [B, c, 1, R] each
        at = self.positions[:, None, keys, None]
        return ((at >= start) & (at < stop)).any(-1)


@dataclass(frozen=True)
class _Reader:
    """What one sequence reads: a union of spans for all its queries, and the spans of each query."""

    sequence: int
    rows: range
    union: Spans
    queries: list[Spans]
    blocks: Ints


def make_tiles(
    batch: AttentionBatch, group: int, retention: Retention, block_size: int, reach: Reach = EVERYTHING
) -> list[Tile]:
    """Tiles that together cover every token of the step once, for layers of `group`.

    reach: what queries read here. Where that is a part, sequences that read nothing are in no tile.
    """
    table = batch.groups[group].block_table
    readers = [_reader(batch, s, retention, block_size, reach) for s in range(len(batch.start))]
    readers = [reader for reader in readers if len(reader.blocks) or not reach.is_part]
    return [_tile(members, table, block_size) for members in _pack(readers, block_size)]


def _reader(batch: AttentionBatch, sequence: int, retention: Retention, block_size: int, reach: Reach) -> _Reader:
    rows = range(batch.query_start[sequence], batch.query_start[sequence + 1])
    start = batch.start[sequence]
    queries = [
        _merge([(s.start, s.stop) for s in retention.live(p)] + [(p, p + 1)]) for p in range(start, start + len(rows))
    ]
    if reach.is_part:
        queries = [_within(spans, p, block_size, reach) for p, spans in enumerate(queries, start)]
    union = _merge(sorted(span for spans in queries for span in spans))
    covered = _merge([(lo // block_size, -(-hi // block_size)) for lo, hi in union])
    blocks = np.concatenate([np.arange(lo, hi, dtype=np.int64) for lo, hi in covered] or [np.empty(0, np.int64)])
    return _Reader(sequence, rows, union, queries, blocks)


def _within(spans: Spans, position: int, block_size: int, reach: Reach) -> Spans:
    stop = position // block_size * block_size if reach.older else position + 1
    stop = stop if reach.limit is None else min(stop, reach.limit)
    clipped = ((max(lo, reach.begin), min(hi, stop)) for lo, hi in spans)
    return [(lo, hi) for lo, hi in clipped if lo < hi]


def _merge(spans: Spans) -> Spans:
    """Ascending spans with those that touch or overlap joined."""
    merged: Spans = []
    for lo, hi in spans:
        if merged and lo <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(hi, merged[-1][1]))
        else:
            merged.append((lo, hi))
    return merged


def _pack(readers: list[_Reader], block_size: int) -> Iterator[list[_Reader]]:
    """Decodes of similar length together (at most half of a tile is padding), everything else alone."""
    decodes = sorted((r for r in readers if len(r.rows) == 1), key=lambda r: -len(r.blocks))
    yield from ([r] for r in readers if len(r.rows) > 1)
    members: list[_Reader] = []
    for reader in decodes:
        longest = len(members[0].blocks) if members else 0
        if members and ((len(members) + 1) * longest * block_size > MAX_KEYS or 2 * len(reader.blocks) < longest):
            yield members
            members = []
        members.append(reader)
    if members:
        yield members


def _tile(members: list[_Reader], table: Tensor, block_size: int) -> Tile:
    blocks = np.full((len(members), max(len(r.blocks) for r in members)), -1, np.int64)
    for i, reader in enumerate(members):
        blocks[i, : len(reader.blocks)] = reader.blocks
    positions = np.where(blocks < 0, NOWHERE, blocks * block_size)[..., None] + np.arange(block_size)
    positions = positions.reshape(len(members), -1)
    spans = _pad([r.queries for r in members])
    union = _pad([[r.union] for r in members])[:, :, 0, :, None]  # [2, B, U, 1]
    inner = positions[:, None]
    seen = ((inner >= union[0]) & (inner < union[1])).any(1)
    bounds = [_key_range(positions[i], spans[:, i]) for i in range(len(members))]

    def ship(array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(table.device)

    sequences = np.array([r.sequence for r in members], dtype=np.int64)
    held = table[ship(sequences)[:, None], ship(np.maximum(blocks, 0))].long()
    return Tile(
        rows=ship(np.array([row for r in members for row in r.rows], dtype=np.int64)),
        block_ids=held.clamp_(min=0).flatten(),
        positions=ship(positions),
        spans=ship(spans),
        seen=ship(seen),
        first=np.min([first for first, _ in bounds], axis=0),
        last=np.max([last for _, last in bounds], axis=0),
    )


def _pad(spans: Sequence[list[Spans]]) -> Ints:
    """[2, B, c, R] starts and stops; queries with fewer than R spans get empty ones."""
    width = max(1, *(len(query) for queries in spans for query in queries))
    padded = [[query + [(0, 0)] * (width - len(query)) for query in queries] for queries in spans]
    return np.moveaxis(np.array(padded, np.int64), -1, 0)


def _key_range(positions: Ints, spans: Ints) -> tuple[Ints, Ints]:
    """Per query [c], the keys (as indices into positions [L]) from its first span's start to its last span's stop."""
    start, stop = spans  # [c, R]
    lowest = np.where(stop > start, start, NOWHERE).min(-1)
    return np.searchsorted(positions, lowest), np.searchsorted(positions, stop.max(-1))
