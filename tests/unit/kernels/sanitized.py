"""Programs of the kernels' sources under address and undefined-behaviour sanitizers, built apart from the extension."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[3] / "src/kvtrove/kernels/cpu"
FLAGS = ["-std=c++17", "-fopenmp", "-ffp-contract=off", "-Wno-psabi", f"-I{SOURCES}"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def _compiler(directory: Path) -> str:
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler is installed")
    probe = directory / "probe.cpp"
    probe.write_text("int main() {}")
    built = subprocess.run([found, *SANITIZE, probe, "-o", directory / "probe"], capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"{found} has no sanitizer libraries: {built.stderr.splitlines()[-1]}")
    return found


def output_of(driver: str, sources: Iterable[str], directory: Path, *flags: str) -> str:
    """What `driver`, a file of this folder, prints: built with these sources of the kernels (no suffix), then run.

    Skips the test where there is no compiler or no sanitizer.
    """
    files = [Path(__file__).with_name(driver), *(SOURCES / f"{name}.cpp" for name in sources)]
    binary = directory / "sanitized"
    command = [_compiler(directory), *FLAGS, *flags, *SANITIZE, *files, "-o", binary]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    # libgomp keeps its threads until the process ends, which is no leak of ours
    environment = {"ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([binary], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout
