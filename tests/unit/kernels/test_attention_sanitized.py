"""The attention kernels under address and undefined-behaviour sanitizers."""

from __future__ import annotations

import pytest

from tests.unit.attention.tolerances import SPLIT_QUERY, SUMS, tolerance
from tests.unit.kernels.sanitized import Kernels

LEVELS = ("amx", "avx512", "avx2", "portable")
NAMES = (*(f"attention/{name}" for name in (*LEVELS, "store", "work")), "isa", "threads")  # the longest comes first


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return Kernels(tmp_path_factory.mktemp("sanitized"), NAMES)


@pytest.mark.timeout(900)
def test_kernels_touch_nothing_beyond_their_memory(attention: Kernels) -> None:
    *distances, steady = attention.run("attention_sanitized").splitlines()
    assert steady == "steady 120", "steps like the ones before took memory"
    assert len(distances) % 8 == 0
    for line in distances:
        stored, layout, level, far = line.split()
        reads = "float32" if layout == "plain" and stored != "int8" else stored
        most = 24 * 2 * 2 * 0.3  # head_dim times the largest q and k, times scale
        assert float(far) <= 2 * tolerance(reads, level, largest=2.0, scores=most), line


@pytest.mark.timeout(900)
def test_tiles_compute_what_vectors_do_and_depend_on_nothing_else(attention: Kernels) -> None:
    largest, most = 2.0, 256 * 2 * 2 * 0.3
    allowed = [tolerance(stored, "amx", largest, most) for stored in ("bfloat16", "int8")]
    scores = most * (SPLIT_QUERY + SUMS)
    printed = attention.run("attention_tiles", *allowed, scores)
    assert printed.split() == ["20"], printed
