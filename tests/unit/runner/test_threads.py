"""torch's threads in a step: fewer while it has little to do, and the caller's own again behind it."""

from __future__ import annotations

import pytest
import torch

from kvtrove.runner.threads import few_threads


@pytest.mark.parametrize(("before", "within"), [(1, 1), (2, 1), (8, 2)])
def test_a_step_takes_few_threads_and_gives_them_back(before: int, within: int) -> None:
    mine = torch.get_num_threads()
    try:
        torch.set_num_threads(before)
        with few_threads():
            assert torch.get_num_threads() == within
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(mine)
