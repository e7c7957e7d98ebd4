"""copy_rows against the definition: one numpy row assignment after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvtrove import kernels


def arena_of(num_rows: int, row_bytes: int) -> NDArray[np.uint8]:
    """Rows that all differ: every byte depends on its row and its column."""
    return (np.arange(num_rows)[:, None] * 31 + np.arange(row_bytes) * 7).astype(np.uint8)


def expected(arena: NDArray[np.uint8], pairs: list[tuple[int, int]]) -> NDArray[np.uint8]:
    result = arena.copy()
    for source, target in pairs:
        result[target] = result[source]
    return result


def as_pairs(pairs: list[tuple[int, int]]) -> NDArray[np.int32]:
    return np.array(pairs, dtype=np.int32).reshape(-1, 2)


ROW = st.integers(0, 6)


@given(
    pairs=st.lists(st.tuples(ROW, ROW), max_size=12),
    row_bytes=st.sampled_from([0, 1, 63, 64, 65, 200, 4096]),
    num_threads=st.integers(0, 4),
)
def test_equals_one_assignment_after_the_other(pairs: list[tuple[int, int]], row_bytes: int, num_threads: int) -> None:
    """Chains (0 -> 1, 1 -> 2), swaps and copies of a row to itself included, whatever the number of threads."""
    arena = arena_of(7, row_bytes)
    want = expected(arena, pairs)
    kernels.copy_rows(arena, as_pairs(pairs), num_threads=num_threads)
    np.testing.assert_array_equal(arena, want)


def test_a_later_pair_reads_what_an_earlier_one_wrote() -> None:
    arena = arena_of(3, 8)
    first = arena[0].copy()
    kernels.copy_rows(arena, as_pairs([(0, 1), (1, 2)]))
    np.testing.assert_array_equal(arena, np.stack([first] * 3))


def test_large_rows_are_shared_among_threads() -> None:
    """4 MiB: enough that more than one thread takes part when there is more than one."""
    arena = arena_of(4, 2**20 + 5)
    want = expected(arena, [(0, 3), (3, 1), (2, 0)])
    kernels.copy_rows(arena, as_pairs([(0, 3), (3, 1), (2, 0)]), num_threads=3)
    np.testing.assert_array_equal(arena, want)


def test_torch_tensors_are_written_in_place() -> None:
    arena = torch.arange(4, dtype=torch.uint8).repeat_interleave(16).reshape(4, 16)
    kernels.copy_rows(arena, torch.tensor([[3, 0]], dtype=torch.int32))
    assert arena[:, 0].tolist() == [3, 1, 2, 3]


@pytest.mark.parametrize("pair", [(0, 4), (4, 0), (-1, 0), (0, -1)])
def test_a_row_that_does_not_exist_is_refused_before_any_copy(pair: tuple[int, int]) -> None:
    arena = arena_of(4, 8)
    before = arena.copy()
    message = rf"pairs\[1\] copies row {pair[0]} to row {pair[1]}, but the arena has 4 rows"
    with pytest.raises(IndexError, match=message):
        kernels.copy_rows(arena, as_pairs([(0, 1), pair]))
    np.testing.assert_array_equal(arena, before)


def test_a_negative_number_of_threads_is_refused() -> None:
    with pytest.raises(ValueError, match="num_threads: -2 must be at least 0"):
        kernels.copy_rows(arena_of(2, 8), as_pairs([(0, 1)]), num_threads=-2)


def read_only(arena: NDArray[np.uint8]) -> NDArray[np.uint8]:
    arena.flags.writeable = False
    return arena


@pytest.mark.parametrize(
    ("arena", "pairs"),
    [
        pytest.param(arena_of(4, 8).astype(np.int8), as_pairs([(0, 1)]), id="arena of int8"),
        pytest.param(arena_of(4, 8)[0], as_pairs([(0, 1)]), id="arena of one dimension"),
        pytest.param(arena_of(4, 8)[:, ::2], as_pairs([(0, 1)]), id="arena with gaps"),
        pytest.param(read_only(arena_of(4, 8)), as_pairs([(0, 1)]), id="read-only arena"),
        pytest.param(arena_of(4, 8), as_pairs([(0, 1)]).astype(np.int64), id="pairs of int64"),
        pytest.param(arena_of(4, 8), np.zeros((2, 3), np.int32), id="triples"),
        pytest.param(arena_of(4, 8), [(0, 1)], id="a list"),
    ],
)
def test_other_arrays_are_refused_instead_of_copied(arena: NDArray[np.uint8], pairs: NDArray[np.int32]) -> None:
    """A silent conversion would copy rows of a temporary and leave the arena as it was."""
    with pytest.raises(TypeError, match=r"copy_rows\(\): incompatible function arguments"):
        kernels.copy_rows(arena, pairs)
