"""Rankings are exact under ties, however narrow the first look is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvtrove.runner import ranking
from kvtrove.runner.ranking import EXCLUDED, ranked, rankings

FEW_VALUES = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0, EXCLUDED])
ROWS = st.integers(1, 40).flatmap(
    lambda size: st.lists(st.lists(FEW_VALUES, min_size=size, max_size=size), min_size=1, max_size=5)
)


def in_order(row: torch.Tensor) -> list[int]:
    """All tokens that are not excluded: value falling, id rising."""
    order = np.lexsort((np.arange(len(row)), -row.numpy()))
    return [int(i) for i in order if row[i] > EXCLUDED]


@given(ROWS, st.integers(1, 45))
def test_ranked_is_a_prefix_of_the_one_order(rows, width):
    x = torch.tensor(rows)
    values, ids, complete = ranked(x, width)
    for row, value, order, full in zip(x, values, ids, complete.tolist(), strict=True):
        known = int((value > EXCLUDED).sum())
        assert order[:known].tolist() == in_order(row)[:known]
        assert value[:known].tolist() == row[order[:known]].tolist()
        assert not full or known == len(in_order(row))


@given(ROWS, st.integers(0, 45))
def test_rankings_give_every_row_once_with_as_many_as_it_needs(rows, need):
    x = torch.tensor(rows)
    found: dict[int, list[int]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "WIDTHS", (2, 6))
        for index, values, ids in rankings(x, lambda rows, values: (values > EXCLUDED).sum(-1) >= need):
            for row, value, order in zip(index.tolist(), values, ids, strict=True):
                assert row not in found
                found[row] = order[value > EXCLUDED].tolist()
    assert sorted(found) == list(range(len(rows)))
    for row, order in found.items():
        assert order == in_order(x[row])[: len(order)]
        assert len(order) >= min(need, len(in_order(x[row])))
