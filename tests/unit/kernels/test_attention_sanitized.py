"""The attention kernels under address and undefined-behaviour sanitizers, built apart from the extension."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[3] / "src/kvtrove/kernels/cpu"
DRIVER = Path(__file__).with_name("attention_sanitized.cpp")
FLAGS = ["-std=c++17", "-O1", "-fopenmp", "-ffp-contract=off", "-Wno-psabi", f"-I{SOURCES}"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def compiler(directory: Path) -> str:
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler is installed")
    probe = directory / "probe.cpp"
    probe.write_text("int main() {}")
    built = subprocess.run([found, *SANITIZE, probe, "-o", directory / "probe"], capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"{found} has no sanitizer libraries: {built.stderr.splitlines()[-1]}")
    return found


@pytest.mark.timeout(900)
def test_kernels_touch_nothing_beyond_their_memory(tmp_path: Path) -> None:
    names = ("isa", "attention/work", "attention/store", "attention/portable", "attention/avx2", "attention/avx512")
    sources = [SOURCES / f"{name}.cpp" for name in names]
    binary = tmp_path / "sanitized"
    command = [compiler(tmp_path), *FLAGS, *SANITIZE, DRIVER, *sources, "-o", binary]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    # libgomp keeps its threads until the process ends, which is no leak of ours
    environment = {"ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([binary], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == ["120"], "levels disagree"
