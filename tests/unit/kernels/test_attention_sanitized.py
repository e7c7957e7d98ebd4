"""The attention kernels under address and undefined-behaviour sanitizers, built apart from the extension."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[3] / "src/kvtrove/kernels/cpu"
NAMES = ("isa", *(f"attention/{name}" for name in ("work", "store", "portable", "avx2", "avx512", "amx")))
# tiles are emulated: machines without AMX test the level, too
FLAGS = ["-std=c++17", "-O1", "-fopenmp", "-ffp-contract=off", "-Wno-psabi", "-DKVTROVE_EMULATE_AMX", f"-I{SOURCES}"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def find_compiler(directory: Path) -> str:
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
    """Sanitized objects of all kernels, to link drivers with."""

    def __init__(self, directory: Path) -> None:
        self.compiler, self.directory = find_compiler(directory), directory
        with ThreadPoolExecutor(2) as pool:
            self.objects = list(pool.map(self.compile, [SOURCES / f"{name}.cpp" for name in reversed(NAMES)]))

    def compile(self, source: Path) -> Path:
        target = self.directory / f"{source.stem}.o"
        build([self.compiler, *FLAGS, *SANITIZE, "-c", source, "-o", target])
        return target

    def run(self, driver: str) -> str:
        """What tests/unit/kernels/<driver>.cpp prints."""
        main, binary = self.compile(Path(__file__).with_name(f"{driver}.cpp")), self.directory / driver
        build([self.compiler, "-fopenmp", *SANITIZE, main, *self.objects, "-o", binary])
        # libgomp keeps its threads until the process ends, which is no leak of ours
        environment = {"ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "2"}
        done = subprocess.run([binary], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return Kernels(tmp_path_factory.mktemp("sanitized"))


@pytest.mark.timeout(900)
def test_kernels_touch_nothing_beyond_their_memory(sanitized: Kernels) -> None:
    assert sanitized.run("attention_sanitized").split() == ["120"], "levels disagree"


@pytest.mark.timeout(900)
def test_tiles_compute_what_vectors_do_and_depend_on_nothing_else(sanitized: Kernels) -> None:
    printed = sanitized.run("attention_tiles")
    assert printed.split() == ["20"], printed
