"""From scheduled sequences to tensors: flat tokens and positions, and per group block tables and slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvtrove.attention.backend import AttentionBatch, GroupTables
from kvtrove.kv.arena import Arena
from kvtrove.kv.cells import read_counts
from kvtrove.scheduler.output import ScheduledSequence


@dataclass(frozen=True)
class Batch:
    """tokens, positions: int64 [T]. logit_rows: int64 [R], the rows of T whose logits are wanted (`_logit_rows`)."""

    tokens: Tensor
    positions: Tensor
    logit_rows: Tensor
    attention: AttentionBatch


def build_batch(
    sequences: Sequence[ScheduledSequence], block_size: int, device: str, arena: Arena | None = None
) -> Batch:
    """T tokens of S sequences, in the order given. No cost here grows with the context but one copy of each table.

    arena: read where sequences begin with packed rows.
    """
    counts = np.array([len(s.tokens) for s in sequences])
    start = np.array([s.start for s in sequences])
    shift = np.array([s.shift for s in sequences])
    query_start = np.concatenate([[0], np.cumsum(counts)])
    owner = np.repeat(np.arange(len(sequences)), counts)  # [T] sequence of each token
    places = np.arange(query_start[-1]) - query_start[owner] + start[owner]  # [T] in the table of each sequence
    tokens = np.concatenate([np.asarray(s.tokens, dtype=np.int64) for s in sequences])
    groups = []
    for tables in zip(*(s.block_ids for s in sequences), strict=True):
        block_table = _padded(tables)
        slots = block_table[owner, places // block_size].astype(np.int64) * block_size + places % block_size
        groups.append(GroupTables(_to(slots, device), _to(block_table, device)))
    completed = [
        (i, block)
        for i, s in enumerate(sequences)
        for block in range(s.start // block_size, (s.start + len(s.tokens)) // block_size)
    ]
    seats = [s.seat for s in sequences]
    said = [None if arena is None or not s.packed else read_counts(arena, int(s.block_ids[0][0])) for s in sequences]
    packed = [s.packed for s in sequences]
    attention = AttentionBatch(
        query_start.tolist(), start.tolist(), tuple(groups), seats, completed, packed=packed, counts=said
    )
    positions, logit_rows = places + shift[owner], _logit_rows(sequences, query_start)
    return Batch(_to(tokens, device), _to(positions, device), _to(logit_rows, device), attention)


def asked_about(sequences: Sequence[ScheduledSequence], batch: Batch) -> tuple[Tensor, Batch] | None:
    """The rows int64 [K] of a step that somebody asks about, and a batch of them alone; None where that is all of them.

    Layers that store nothing need no others: of a prompt, the last token of its last chunk. Each sequence keeps the
    rows from the first one that is asked about on, so that they still follow each other.
    """
    if any(s.pool is not None for s in sequences):
        return None
    starts = batch.attention.query_start
    counts = [stop - start for start, stop in pairwise(starts)]
    kept = [_asked(s, count) for s, count in zip(sequences, counts, strict=True)]
    if kept == counts:
        return None
    there = [i for i, n in enumerate(kept) if n]
    rows = np.concatenate([np.arange(starts[i + 1] - kept[i], starts[i + 1]) for i in there] or [np.empty(0, np.int64)])
    at = np.full(starts[-1], -1)
    at[rows] = np.arange(len(rows))
    ids, chosen = (_to(np.asarray(x, dtype=np.int64), str(batch.tokens.device)) for x in (rows, there))
    first = batch.attention
    attention = AttentionBatch(
        [0, *np.cumsum([kept[i] for i in there]).tolist()],
        [first.start[i] + counts[i] - kept[i] for i in there],
        tuple(GroupTables(group.slots[ids], group.block_table[chosen]) for group in first.groups),
        [first.seats[i] for i in there],
    )
    logit_rows = _to(at[batch.logit_rows.cpu().numpy()], str(batch.tokens.device))
    return ids, Batch(batch.tokens[ids], batch.positions[ids], logit_rows, attention)


def _asked(s: ScheduledSequence, count: int) -> int:
    """Tokens of a sequence, from its last one back to the first that is asked about."""
    if len(s.prompt_targets):
        return count
    return 0 if s.sample is None else 1 + len(s.verify)


def _logit_rows(sequences: Sequence[ScheduledSequence], query_start: NDArray[np.int64]) -> NDArray[np.int64]:
    """First the last row of every sequence that samples, and the rows of its drafts; then those that report prompt
    logprobs, in order."""
    samples = [
        row
        for end, s in zip(query_start[1:].tolist(), sequences, strict=True)
        if s.sample is not None
        for row in range(end - 1 - len(s.verify), end)
    ]
    reports = [query_start[i] + np.arange(len(s.prompt_targets)) for i, s in enumerate(sequences)]
    return np.concatenate([np.array(samples, dtype=np.int64), *reports])


def _padded(tables: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    block_table = np.full((len(tables), max(len(t) for t in tables)), -1, dtype=np.int32)
    for row, table in zip(block_table, tables, strict=True):
        row[: len(table)] = table
    return block_table


def _to(values: NDArray[np.generic], device: str) -> Tensor:
    return torch.from_numpy(values).to(device, non_blocking=True)
