"""The attention kernels under address and undefined-behaviour sanitizers."""

from __future__ import annotations

import pytest

from tests.unit.kernels.sanitized import Kernels

LEVELS = ("amx", "avx512", "avx2", "portable")
NAMES = (*(f"attention/{name}" for name in (*LEVELS, "store", "work")), "isa", "threads")  # the longest comes first


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return Kernels(tmp_path_factory.mktemp("sanitized"), NAMES)


@pytest.mark.timeout(900)
def test_kernels_touch_nothing_beyond_their_memory(attention: Kernels) -> None:
    assert attention.run("attention_sanitized").split() == ["120"], "levels disagree"


@pytest.mark.timeout(900)
def test_tiles_compute_what_vectors_do_and_depend_on_nothing_else(attention: Kernels) -> None:
    printed = attention.run("attention_tiles")
    assert printed.split() == ["20"], printed
