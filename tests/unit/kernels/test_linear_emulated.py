"""Linear layers on emulated tiles, under address and undefined-behaviour sanitizers: a test of AMX on every machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.kernels.sanitized import Kernels

SOURCES = ("linear/linear", "linear/groups", "linear/levels/amx", "common/pages", "layers/norms", "common/threads")


@pytest.mark.timeout(900)
def test_products_on_tiles_equal_float64_and_a_row_is_the_same_in_every_batch(tmp_path: Path) -> None:
    assert Kernels(tmp_path, SOURCES).run("linear_emulated") == "all equal\n"
