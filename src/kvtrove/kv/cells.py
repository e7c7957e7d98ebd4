"""Rows cut into cells, for sequences whose heads keep different numbers of tokens.

A cell holds `block_size` tokens of one key head of one layer, K and V. All cells of a row have the same planes, so that
a packed row may give each of them to any head: no byte is left over, however unequal the heads.

    a row       | layer 0 head 0 | layer 0 head 1 | layer 1 head 0 | layer 1 head 1 |    the next block of each head
    packed
      row 0     2, 1, 4, 1                                                               blocks that each head has
      row 1     | layer 0 head 0 | layer 0 head 0 | layer 0 head 1 | layer 1 head 0 |
      row 2     | layer 1 head 0 | layer 1 head 0 | layer 1 head 0 | layer 1 head 1 |

A sequence begins with its packed rows, if it has some, and goes on with ordinary ones: a head's table is its cells
there, and behind them its cell of every later row. What the first packed row says is all that has to be known, and it
moves with the rows: into forks, tiers and other processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kvtrove.kv.arena import Arena


def write_counts(arena: Arena, row: int, counts: Sequence[int]) -> None:
    """Say in row `row`, the first of the packed ones, how many blocks each head of each layer has, in their order."""
    said = torch.tensor(counts, dtype=torch.int32, device=arena.device)
    arena.rows[row].zero_()
    arena.rows[row, : 4 * len(counts)] = said.view(torch.uint8)


def read_counts(arena: Arena, row: int) -> NDArray[np.int32]:
    """int32 [cells of a row]: what `write_counts` said."""
    return arena.rows[row, : 4 * arena.spec.cells].view(torch.int32).cpu().numpy()


def packed_cells(rows: Sequence[int], cells: int, counts: Sequence[int]) -> list[NDArray[np.int64]]:
    """Cells of each head, int64 [count], in the packed rows behind the first. cells: of a row."""
    every = (np.asarray(rows, dtype=np.int64)[:, None] * cells + np.arange(cells)).ravel()
    return np.split(every, np.cumsum(counts))[:-1]


def head_tables(
    tables: NDArray[np.int32], counts: Sequence[NDArray[np.int32] | None], packed: Sequence[int], cells: int
) -> NDArray[np.int32]:
    """Tables of cells, int32 [cells, S, width], of every head of every layer.

    tables: int32 [S, blocks], rows, -1 where none is held. counts: of each sequence, None where no rows are packed.
    packed: rows that are.
    """
    longest = [0 if said is None else int(said.max()) - rows for said, rows in zip(counts, packed, strict=True)]
    width = tables.shape[1] + max(0, *longest)
    own = np.arange(cells, dtype=np.int32)[:, None]
    found = np.full((cells, len(tables), width), -1, dtype=np.int32)
    for s, (row, said) in enumerate(zip(tables, counts, strict=True)):
        if said is None:
            found[:, s, : len(row)] = np.where(row < 0, -1, row * cells + own)
            continue
        head, later = row[1 : packed[s]], row[packed[s] :]
        later = np.where(later < 0, -1, later * cells + own)
        at = (np.cumsum(said) - said)[:, None]  # place of each head's first cell among the packed ones
        place = np.arange(width)
        there = np.minimum(at + place, len(head) * cells - 1)  # beyond a head's own, of which it may have none: unused
        mine = head[there // cells] * cells + there % cells
        behind = np.clip(place - said[:, None], 0, max(0, later.shape[1] - 1))
        rest = np.take_along_axis(later, behind, 1) if later.shape[1] else np.full_like(mine, -1)
        rest = np.where(place - said[:, None] < later.shape[1], rest, -1)
        found[:, s] = np.where(place < said[:, None], mine, rest)
    return found
