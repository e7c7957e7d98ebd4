"""What this machine has and how fast it is: memory, devices, datasheets, calibration files, units."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import pytest

from kvtrove.config import ConfigError
from kvtrove.plan.hardware import (
    CALIBRATION,
    Machine,
    StepFit,
    find_machine,
    read_calibration,
    recognise,
    write_calibration,
)
from kvtrove.plan.memory import Store, available_bytes, cuda_devices, host
from kvtrove.plan.units import parse_rate, parse_seconds, parse_speed, show_seconds

GIB = 2**30


def machine_root(root: Path, files: dict[str, str]) -> Path:
    meminfo = f"MemTotal: {64 * GIB // 1024} kB\nMemAvailable: {48 * GIB // 1024} kB\n"
    for name, text in {"proc/meminfo": meminfo, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "total", "free"),
    [
        ({}, 64, 48),
        ({"memory.max": "max", "memory.current": "1"}, 64, 48),
        ({"memory.max": str(8 * GIB), "memory.current": str(3 * GIB)}, 8, 5),
        ({"memory.max": str(100 * GIB), "memory.current": "0"}, 64, 48),
        ({"memory.max": str(2 * GIB), "memory.current": str(3 * GIB)}, 2, 0),
        ({"memory/memory.limit_in_bytes": str(8 * GIB), "memory/memory.usage_in_bytes": "0"}, 8, 8),
        ({"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "0"}, 64, 48),
    ],
)
def test_memory_is_ram_capped_by_the_control_group(
    files: dict[str, str], total: int, free: int, tmp_path: Path
) -> None:
    root = machine_root(tmp_path, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert host(root) == Store("RAM", total * GIB, free * GIB)
    assert available_bytes(root) == free * GIB


LIMITS = "Limit   Soft Limit   Hard Limit   Units\nMax address space   {}   unlimited   bytes\n"


@pytest.mark.parametrize(
    ("files", "total", "free"),
    [
        # a group inside of another: the tighter one counts, wherever it is
        ({"proc/self/cgroup": "0::/outer/inner\n", "sys/fs/cgroup/outer/inner/memory.max": str(8 * GIB),
          "sys/fs/cgroup/outer/inner/memory.current": str(3 * GIB)}, 8, 5),
        ({"proc/self/cgroup": "0::/outer/inner\n", "sys/fs/cgroup/outer/memory.max": str(6 * GIB),
          "sys/fs/cgroup/outer/memory.current": str(GIB), "sys/fs/cgroup/outer/inner/memory.max": "max"}, 6, 5),
        ({"proc/self/cgroup": "5:cpu:/x\n4:memory:/job\n", "sys/fs/cgroup/memory/job/memory.limit_in_bytes": str(GIB),
          "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "0"}, 1, 1),
        # pages of files are given up when something else needs them
        ({"sys/fs/cgroup/memory.max": str(8 * GIB), "sys/fs/cgroup/memory.current": str(7 * GIB),
          "sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {4 * GIB}\n"}, 8, 5),
        # ulimit -v
        ({"proc/self/limits": LIMITS.format(4 * GIB), "proc/self/status": f"VmSize:\t {GIB // 1024} kB\n"}, 4, 3),
        ({"proc/self/limits": LIMITS.format("unlimited"), "proc/self/status": "VmSize:\t 5 kB\n"}, 64, 48),
        ({"proc/self/limits": LIMITS.format(GIB), "proc/self/status": f"VmSize:\t {2 * GIB // 1024} kB\n"}, 1, 0),
    ],
)  # fmt: skip
def test_memory_is_capped_by_nested_groups_and_by_limits_of_the_process(
    files: dict[str, str], total: int, free: int, tmp_path: Path
) -> None:
    assert host(machine_root(tmp_path, files)) == Store("RAM", total * GIB, free * GIB)


class FakeNVML:
    """Two devices; `broken` fails every call."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken
        self.shut_down = 0

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return int(self.broken)

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.shut_down += 1

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: Any) -> int:  # noqa: N802
        handle._obj.value = index + 1
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, memory: Any) -> int:  # noqa: N802
        memory._obj.total, memory._obj.free = 80 * GIB, 70 * GIB * (handle.value or 0)
        return 0

    def nvmlDeviceGetName(self, handle: ctypes.c_void_p, name: Any, size: int) -> int:  # noqa: N802
        name.value = b"NVIDIA H100 80GB HBM3"
        return 0


def test_cuda_devices_come_from_the_driver() -> None:
    nvml = FakeNVML()
    devices = cuda_devices(lambda name: nvml)  # type: ignore[arg-type, return-value]
    assert devices == [Store("NVIDIA H100 80GB HBM3", 80 * GIB, n * 70 * GIB) for n in (1, 2)]
    assert nvml.shut_down == 1


def test_no_driver_and_a_broken_driver_are_no_devices() -> None:
    def missing(name: str) -> ctypes.CDLL:
        raise OSError(name)

    assert cuda_devices(missing) == []
    assert cuda_devices(lambda name: FakeNVML(broken=True)) == []  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
    ],
)
def test_devices_are_recognised(device: str, name: str) -> None:
    found = recognise(device)
    assert found is not None
    assert found.name == name


def test_unknown_devices_are_not_guessed() -> None:
    assert recognise("Voodoo 2") is None
    with pytest.raises(ConfigError, match=r"hardware: 'h1000' is not one of .*did you mean 'h100'"):
        find_machine("h1000")


@pytest.mark.parametrize("fit", [None, StepFit(1e-3, 2e-5, 1e-8, 1e-10, 3e-5)])
def test_a_calibration_survives_its_file(fit: StepFit | None, tmp_path: Path) -> None:
    machine = Machine("here", 3.1e10, 2.2e12, measured=True, fit=fit)
    write_calibration(tmp_path / "c.json", machine)
    assert read_calibration(tmp_path / "c.json") == machine


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "does not exist"),
        ("{", "cannot be read as JSON"),
        ({"bandwidth": 1}, f"'format' is not '{CALIBRATION}'"),
        ({"format": CALIBRATION, "bandwidth": 0, "flops": 1}, "'bandwidth' is 0, expected a number above 0"),
        ({"format": CALIBRATION, "bandwidth": 1, "flops": "fast"}, "'flops' is 'fast', expected a number"),
        ({"format": CALIBRATION, "bandwidth": 1, "flops": 1, "step": {"fixed": -1}}, "'fixed' is -1"),
    ],
)
def test_a_bad_calibration_names_the_field(values: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    if values is not None:
        path.write_text(values if isinstance(values, str) else json.dumps(values))
    with pytest.raises(ConfigError, match=message):
        read_calibration(path)


def test_units() -> None:
    assert [parse_seconds(t, "t") for t in ("50ms", "1s", "1.5 s", "2min", "3", "1h")] == [0.05, 1, 1.5, 120, 3, 3600]
    assert [parse_rate(t, "r") for t in ("3/s", "120/min", "0.5")] == [3, 2, 0.5]
    assert [parse_speed(t, "b") for t in ("31GB/s", "2.2TFLOPS", "2e12", "5T")] == [31e9, 2.2e12, 2e12, 5e12]
    assert [show_seconds(s) for s in (0.0123, 2.5, 4000, float("inf"))] == ["12.3 ms", "2.5 s", "4000 s", "never"]


@pytest.mark.parametrize(
    ("parse", "text"), [(parse_seconds, "soon"), (parse_rate, "3/day"), (parse_speed, "fast"), (parse_seconds, "0")]
)
def test_bad_units_name_the_setting_and_an_example(parse: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"what: cannot read '{text}' as a .*write for example"):
        parse(text, "what")
