"""What `kvtrove doctor` says of machines that have something wrong with them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from typer.testing import CliRunner

from kvtrove import kernels
from kvtrove.cli.main import app
from kvtrove.doctor import processor, proof, report, speed
from kvtrove.doctor.check import Check
from kvtrove.kernels.cores import Cores
from kvtrove.kernels.linear import PackedWeights


def test_every_level_of_this_processor_is_proven() -> None:
    assert {level: proof.problems(level) for level in kernels.levels()} == {level: [] for level in kernels.levels()}


def test_a_wrong_product_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PackedWeights.multiply

    def wrong(self: PackedWeights, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y = right(self, x, bias)
        if self.kind == "int8" and len(x) == 33:
            y[-1, -1] += 0.1
        return y

    monkeypatch.setattr(PackedWeights, "multiply", wrong)
    assert proof.problems("portable") == ["products with int8 weights"]
    monkeypatch.setattr(kernels, "levels", lambda: ["portable"])
    [check] = processor._instructions()
    assert (check.state, check.value["wrong"]) == ("warning", {"portable": ["products with int8 weights"]})


def test_wrong_attention_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = proof.CpuBackend.run

    def wrong(self: Any, q: Tensor, k: Tensor, v: Tensor, layer: Any, plan: Any) -> Tensor:
        return right(self, q, k.roll(1, 0), v, layer, plan)

    monkeypatch.setattr(proof.CpuBackend, "run", wrong)
    assert proof.problems("portable") == [f"attention over a cache of {cache}" for cache in proof.CACHES]


def checks(found: Any) -> dict[str, Check]:
    return {check.name: check for check in found}


def test_a_machine_with_everything_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "levels", lambda: ["portable", kernels.isa()])
    monkeypatch.setattr("os.getloadavg", lambda: (9.0, 9.0, 9.0))
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setattr(kernels, "huge_page_bytes", lambda: (0, 2**21))
    monkeypatch.setattr("resource.getrlimit", lambda kind: (1024, 1024))
    for name, text in {
        "proc/self/maps": "".join(f"7f00-7f01 r-xp 0 08:01 1 /lib/{n}\n" for n in ("libgomp.so.1", "libiomp5.so")),
        "proc/self/cgroup": "0::/\n",
        "proc/meminfo": "MemTotal: 4096 kB\nMemAvailable: 2048 kB\nSwapTotal: 9000000 kB\nSwapFree: 10 kB\n",
        "sys/fs/cgroup/memory.max": "1048576\n",
        "sys/fs/cgroup/memory.current": "0\n",
        "sys/fs/cgroup/cpu.max": "50000 100000\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = report.examine(tmp_path)
    assert [check.name for check in found.warnings] == ["load", "openmp", "spinning", "huge_pages", "swap", "files"]
    assert all(check.fix for check in found.warnings)
    named = checks(found.checks)
    assert named["openmp"].value == ["/lib/libgomp.so.1", "/lib/libiomp5.so"]
    assert (named["memory"].value["total"], named["memory"].value["allowed"]) == (4 * 2**20, 2**20)
    assert named["cpu_quota"].value == 0.5
    assert named["speed"].state == "note", "a machine without memory to spare is not measured"


def test_without_kernels_it_says_how_to_build_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(wanted: str = "auto") -> str:
        raise ImportError("no _cpu")

    monkeypatch.setattr(kernels, "isa", missing)
    [check] = processor._instructions()
    assert (check.state, check.value, check.fix) == ("warning", None, (processor.BUILD,))


def test_more_threads_than_cores_is_a_warning() -> None:
    assert processor._threads(Cores(1, 1, asked=8)).fix == ("export OMP_NUM_THREADS=1",)


def test_the_speed_is_that_of_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that advances by a tenth of a second whenever it is read: everything takes exactly that."""
    ticks = iter(range(10**6))
    monkeypatch.setattr("kvtrove.bench.engine.limits.READ_BYTES", 2**20)
    monkeypatch.setattr("kvtrove.bench.engine.limits.SIDE", 32)
    found = checks(speed.examine(2**40, clock=lambda: next(ticks) / 10))
    assert found["read_bandwidth"].value == pytest.approx(2**20 / 0.1)
    assert found["matmul_peak"].value["torch"] == pytest.approx(2 * 32**3 / 0.1)
    assert found["matmul_peak"].value["peak"] >= found["matmul_peak"].value["torch"]


def test_fix_prints_the_commands_within_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Check("load", "processor", "load: 9", "Others compute. " * 9, 9.0, "warning", ("ps aux",))
    fine = Check("swap", "memory", "swap: none", "Fine.", None, "ok", ("never shown",))
    monkeypatch.setattr(report, "examine", lambda **_: report.Report({"kvtrove": "1"}, (slow, fine)))
    out = CliRunner().invoke(app, ["doctor", "--fix"]).output
    assert "# load: 9\nps aux\n" in out
    assert "never shown" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert re.search(r"1 warning: `kvtrove doctor --fix`", CliRunner().invoke(app, ["doctor"]).output)
