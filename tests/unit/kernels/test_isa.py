"""Which instruction set is chosen, and how the extension is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvtrove import kernels

LEVELS = ["portable", "avx2", "avx512", "amx"]  # each includes the ones before it
NEEDS = {
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"},
    "amx": {"amx_tile", "amx_bf16", "amx_int8"},
}


def levels_by_the_operating_system() -> list[str]:
    """The levels that the flags of /proc/cpuinfo allow: a second source beside cpuid."""
    found = [line.split(":")[1].split() for line in Path("/proc/cpuinfo").read_text().splitlines() if "flags" in line]
    flags = set(found[0]) if found else set()
    levels = ["portable"]
    for level in LEVELS[1:]:
        if not NEEDS[level] <= flags:
            break
        levels.append(level)
    return levels


def test_auto_is_the_best_level_of_this_processor() -> None:
    assert kernels.isa() == kernels.isa("auto") == levels_by_the_operating_system()[-1]


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_can_be_forced_where_the_processor_has_it(level: str) -> None:
    if level in levels_by_the_operating_system():
        assert kernels.isa(level) == level
    else:
        with pytest.raises(ValueError, match=f"isa: this processor has no '{level}'; its best level is '"):
            kernels.isa(level)


@pytest.mark.parametrize("name", ["", "AVX2", "avx1024"])
def test_an_unknown_level_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=f"isa: '{name}' is not one of auto, portable, avx2, avx512, amx"):
        kernels.isa(name)


def test_without_the_extension_the_error_says_how_to_build_it() -> None:
    script = (
        "import sys; sys.modules['kvtrove.kernels._cpu'] = None\n"
        "from kvtrove import kernels\n"
        "try: kernels.isa()\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "the CPU kernels cannot be loaded" in done.stdout
    assert "pip install -e ." in done.stdout
