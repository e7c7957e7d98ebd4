"""The attention kernels under address and undefined-behaviour sanitizers, built apart from the extension."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.kernels.sanitized import output_of


@pytest.mark.timeout(900)
def test_kernels_touch_nothing_beyond_their_memory(tmp_path: Path) -> None:
    names = ("isa", "attention/work", "attention/store", "attention/portable", "attention/avx2", "attention/avx512")
    printed = output_of("attention_sanitized.cpp", names, tmp_path, "-O1")
    assert printed.split() == ["120"], "levels disagree"
