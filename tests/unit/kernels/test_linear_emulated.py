"""Linear layers on emulated tiles, under address and undefined-behaviour sanitizers: a test of AMX on every machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.kernels.sanitized import output_of


@pytest.mark.timeout(900)
def test_products_on_tiles_equal_float64_and_a_row_is_the_same_in_every_batch(tmp_path: Path) -> None:
    printed = output_of("linear_emulated.cpp", ("linear", "linear_amx"), tmp_path, "-O2", "-DKVTROVE_EMULATE_AMX")
    assert printed == "all equal\n"
