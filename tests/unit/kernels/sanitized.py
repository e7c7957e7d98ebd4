"""Sources of the kernels under address and undefined-behaviour sanitizers, built apart from the extension.

Tiles of AMX are emulated, so that machines without them test that level, too.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[3] / "src/kvtrove/kernels/cpu"
FLAGS = ["-std=c++17", "-fopenmp", "-ffp-contract=off", "-Wno-psabi", "-DKVTROVE_EMULATE_AMX", f"-I{SOURCES}"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def find_compiler(directory: Path) -> str:
    """Skips the test where there is no compiler or no sanitizer."""
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler is installed")
    probe = directory / "probe.cpp"
    probe.write_text("int main() {}")
    built = subprocess.run([found, *SANITIZE, probe, "-o", directory / "probe"], capture_output=True, text=True)
    if built.returncode:
        pytest.skip(f"{found} has no sanitizer libraries: {built.stderr.splitlines()[-1]}")
    return found


def build(command: list[str | Path]) -> None:
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr


class Kernels:
    """Objects of some sources (no suffix), to link drivers of this folder with."""

    def __init__(self, directory: Path, names: Sequence[str], optimise: str = "-O1") -> None:
        self.compiler, self.directory, self.optimise = find_compiler(directory), directory, optimise
        with ThreadPoolExecutor(2) as pool:
            self.objects = list(pool.map(self.compile, [SOURCES / f"{name}.cpp" for name in names]))

    def compile(self, source: Path) -> Path:
        target = self.directory / f"{source.stem}.o"
        build([self.compiler, *FLAGS, self.optimise, *SANITIZE, "-c", source, "-o", target])
        return target

    def run(self, driver: str, *arguments: float) -> str:
        """What <driver>.cpp prints."""
        main, binary = self.compile(Path(__file__).with_name(f"{driver}.cpp")), self.directory / driver
        build([self.compiler, "-fopenmp", *SANITIZE, main, *self.objects, "-o", binary])
        # libgomp keeps its threads until the process ends, which is no leak of ours
        environment = {"ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "2"}
        done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout
