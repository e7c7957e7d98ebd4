"""The attention kernels under address and undefined-behaviour sanitizers, and emulated tiles beside real ones.

Four lanes (the portable level) and sixteen (the one of tiles) stand for all: levels are one source for many widths.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kvtrove import kernels
from tests.unit.attention.tolerances import SPLIT_QUERY, SUMS, tolerance
from tests.unit.kernels.sanitized import FLAGS, SOURCES, Kernels, build

LEVELS = ("attention/levels/avx512", "attention/levels/portable")
OTHERS = (
    *("attention/store", "attention/stored", "attention/summarise", "attention/work"),
    *("common/isa", "common/threads"),
)


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return Kernels(tmp_path_factory.mktemp("sanitized"), (*LEVELS, *OTHERS))  # the longest comes first


@pytest.mark.timeout(900)
def test_kernels_touch_nothing_beyond_their_memory(attention: Kernels) -> None:
    *distances, steady = attention.run("attention_sanitized").splitlines()
    assert steady == "steady 160", "steps like the ones before took memory"
    assert len(distances) == 40 * len(LEVELS)
    for line in distances:
        k, v, level, far = line.split()
        most = 32 * 2 * 2 * 0.3  # elements of a key times the largest of q and k, times scale
        assert float(far) <= 2 * tolerance(k, v, level, largest=2.0, scores=most), line


@pytest.mark.timeout(900)
def test_tiles_compute_what_vectors_do_and_depend_on_nothing_else(attention: Kernels) -> None:
    largest, most = 2.0, 256 * 2 * 2 * 0.3
    stored = ("bfloat16", "int8", "int4")
    allowed = [tolerance(k, v, "amx", largest, most) for k in stored for v in stored]
    scores = most * (SPLIT_QUERY + SUMS)
    printed = attention.run("attention_tiles", *allowed, scores)
    assert printed.split() == ["27"], printed


@pytest.mark.timeout(900)
@pytest.mark.skipif(kernels.isa() != "amx", reason="this processor has no AMX that emulation could be held against")
def test_emulated_tiles_have_the_bits_of_real_ones(attention: Kernels, tmp_path: Path) -> None:
    flags = [flag for flag in FLAGS if flag != "-DKVTROVE_EMULATE_AMX"]
    driver = Path(__file__).with_name("attention_tiles.cpp")
    sources = [driver, *(SOURCES / f"{name}.cpp" for name in (LEVELS[0], *OTHERS))]
    build([attention.compiler, *flags, "-O0", "-DKVTROVE_TILES_ALONE", *sources, "-o", tmp_path / "real"])
    real = subprocess.run([tmp_path / "real"], capture_output=True, text=True, check=True).stdout
    assert real == attention.run("attention_tiles")
    assert len(real.split()) == 27
