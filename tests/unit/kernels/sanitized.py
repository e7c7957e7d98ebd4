"""Sources of the kernels under address and undefined-behaviour sanitizers, built apart from the extension.

Tiles of AMX are emulated, so that machines without them test that level, too. Checks that cost most of the compiler's
time are left to the address sanitizer: a null pointer or one beyond an object is an address that it knows to be wrong,
and lanes are read by types that need no alignment.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvtrove import kernels

SOURCES = Path(__file__).parents[3] / "src/kvtrove/kernels/cpu"
FLAGS = ["-std=c++17", "-pthread", "-ffp-contract=off", "-Wno-psabi", "-DKVTROVE_EMULATE_AMX", f"-I{SOURCES}"]
# with FMA, lanes in plain C++ round as those of real levels do
FUSED = [] if kernels.isa() == "portable" or platform.machine() not in ("x86_64", "AMD64") else ["-mfma"]
MEMORY = (
    "-fsanitize=address,undefined",
    "-fno-sanitize=null,object-size,alignment,pointer-overflow",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
)
RACES = ("-fsanitize=thread", "-fno-omit-frame-pointer")


def find_compiler(directory: Path, sanitize: Sequence[str]) -> str:
    """Skips the test where there is no compiler or no sanitizer."""
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler is installed")
    probe, program = directory / "probe.cpp", directory / "probe"
    probe.write_text("int main() {}")
    for command in ([found, *sanitize, probe, "-o", program], [program]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{found} has no {sanitize[0]} that works here: {(done.stderr.splitlines() or [''])[-1]}")
    return found


def build(command: list[str | Path]) -> None:
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr


class Kernels:
    """Objects of some sources (no suffix), to link drivers of this folder with."""

    def __init__(self, directory: Path, names: Sequence[str], *flags: str, sanitize: Sequence[str] = MEMORY) -> None:
        self.compiler, self.directory, self.sanitize = find_compiler(directory, sanitize), directory, sanitize
        self.flags = flags or ("-O1", *FUSED)
        with ThreadPoolExecutor(2) as pool:
            self.objects = list(pool.map(self.compile, [SOURCES / f"{name}.cpp" for name in names]))

    def compile(self, source: Path) -> Path:
        target = self.directory / f"{source.stem}.o"
        build([self.compiler, *FLAGS, *self.flags, *self.sanitize, "-c", source, "-o", target])
        return target

    def run(self, driver: str, *arguments: float) -> str:
        """What <driver>.cpp prints."""
        binary = self.directory / driver
        if not binary.exists():
            main = self.compile(Path(__file__).with_name(f"{driver}.cpp"))
            build([self.compiler, "-pthread", *self.sanitize, main, *self.objects, "-o", binary])
        done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True, env={})
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout
