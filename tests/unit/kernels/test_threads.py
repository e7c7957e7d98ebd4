"""The pool of threads that kernels share: races, child processes, signals, the end of a process, and its size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvtrove import kernels
from kvtrove.config import ConfigError, EngineConfig
from kvtrove.engine import Engine
from kvtrove.kernels.cores import Cores, find_cores, openmp_runtimes, spinning
from tests.checkpoints import Checkpoints
from tests.unit.kernels.sanitized import RACES, Kernels

PRODUCT = """
import os, signal, sys, threading, time
import torch
from kvtrove import kernels
from kvtrove.kernels.linear import PackedWeights
kernels.set_threads(3)
generator = torch.Generator().manual_seed(1)
weights = PackedWeights(600, 900, "bf16")
weights.fill(0, torch.randn(600, 900, generator=generator))
x = torch.randn(3, 900, generator=generator)
multiply = lambda: weights.multiply(x, None)
expected = multiply()
def right(times=50):
    return all(torch.equal(multiply(), expected) for _ in range(times))
def helpers():
    "Their lines of /proc/self/task/*/status, by name."
    tasks = [open(f"/proc/self/task/{task}/status") for task in os.listdir("/proc/self/task")]
    found = [dict(line.split(":\\t", 1) for line in task) for task in tasks]
    return [status for status in found if status["Name"] == "kvtrove-helper\\n"]
"""


def started(script: str, **settings: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PRODUCT + script]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)  # type: ignore[call-overload, no-any-return]


def result(script: str, **settings: object) -> str:
    """What a program prints that uses kernels; it must end by itself."""
    out, errors = started(script, **settings).communicate(timeout=120)
    assert not errors, errors
    return out


@pytest.mark.parametrize("sleep", ["futex", "condition variable"])
def test_jobs_of_several_threads_race_nowhere(tmp_path: Path, sleep: str) -> None:
    flags = ["-O1", *(["-DKVTROVE_NO_FUTEX"] if sleep != "futex" else [])]
    assert Kernels(tmp_path, ["common/threads"], *flags, sanitize=RACES).run("threads_together") == "all right\n"


def test_a_child_process_gets_threads_of_its_own() -> None:
    script = """
import multiprocessing
def child():
    before = len(helpers())
    assert right()
    return before, len(helpers())
assert right()
read, write = os.pipe()
if (pid := os.fork()) == 0:
    os.write(write, b"%d %d" % child())
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print(os.read(read, 99).decode(), right())
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(*pool.map(right, [20, 20]))
"""
    assert result(script).split() == ["0", "2", "True", "True", "True"]


def test_a_process_ends_while_another_thread_computes() -> None:
    """Beside a daemon thread that comes back from a kernel when the interpreter is gone."""
    script = """
import numpy as np
arena, pairs = np.zeros((8, 1 << 20), np.uint8), np.array([[0, 1]] * 8, np.int32)
def copy():
    while True:
        kernels.copy_rows(arena, pairs)
for _ in range(3):
    threading.Thread(target=copy, daemon=True).start()
time.sleep(0.2)
print("end")
"""
    assert result(script) == "end\n"


def test_an_interrupt_reaches_the_program_and_not_a_helper() -> None:
    script = """
print(*(int(status["SigBlk"], 16) >> signal.SIGINT - 1 & 1 for status in helpers()), flush=True)
try:
    print("started", flush=True)
    right(10**9)
except KeyboardInterrupt:
    print("interrupted", right())
"""
    process = started(script + "\n")
    assert process.stdout is not None
    blocked, begun = process.stdout.readline(), process.stdout.readline()
    assert begun == "started\n", process.communicate()[1]
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert out == "interrupted True\n", errors
    assert blocked == "1 1\n", "helpers block signals"


def test_callers_at_once_get_the_same_results() -> None:
    script = """
found = []
callers = [threading.Thread(target=lambda: found.append(right(100))) for _ in range(16)]
for caller in callers: caller.start()
for caller in callers: caller.join()
print(found == [True] * 16)
"""
    assert result(script) == "True\n"


def test_a_process_on_one_core_uses_one_thread() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    script = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\nfrom kvtrove import kernels\n"
    command = [sys.executable, "-c", script + "print(kernels.threads())"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "1\n"


def test_threads_are_set_for_kernels_and_torch() -> None:
    before = kernels.threads()
    try:
        kernels.set_threads(2)
        assert kernels.threads() == torch.get_num_threads() == 2
    finally:
        kernels.set_threads(before)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"threads: {wrong} must be at least 1"):
            kernels.set_threads(wrong)


def test_an_engine_sets_the_threads_of_kernels_and_torch(checkpoints: Checkpoints) -> None:
    before, usable = kernels.threads(), find_cores().usable
    config = EngineConfig(str(checkpoints.get("llama")), device="cpu", num_blocks=16)
    try:
        Engine(replace(config, threads=usable))
        assert kernels.threads() == torch.get_num_threads() == usable
        with pytest.raises(ConfigError, match=f"threads: {usable + 1} is more than .* may use; {usable} works"):
            Engine(replace(config, threads=usable + 1))
        torch.set_num_threads(1)
        Engine(config)
        assert kernels.threads() == 1, "what a program asks of torch holds for kernels as well"
    finally:
        kernels.set_threads(before)


# ---- how many there are ----


@pytest.mark.parametrize(
    ("cores", "threads", "reason"),
    [
        (Cores(8, 8), 8, "one a core"),
        (Cores(8, 4), 4, "one a core, not one a hyperthread"),
        (Cores(8, 8, quota=2.5), 2, "CPU quota of 2.5"),
        (Cores(8, 8, quota=0.5), 1, "CPU quota of 0.5"),
        (Cores(2, 2, quota=16.0), 2, "one a core"),
        (Cores(1, 1, quota=0.5), 1, "one a core"),
        (Cores(8, 8, quota=2.0, asked=3), 3, "OMP_NUM_THREADS"),
    ],
)
def test_cores_quota_and_the_environment_decide(cores: Cores, threads: int, reason: str) -> None:
    assert (cores.threads, cores.reason) == (threads, reason)


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/a/b", {"cpu.max": "50000 100000"}, 0.5),  # a container's own group is the mount
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000", "cpu.max": "max 100000"}, 3.0),
        ("0::/a/b", {"a/b/cpu.max": "800000 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ("0::/../../c", {"c/cpu.max": "200000 100000"}, 2.0),
        ("0::/", {}, None),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("1:name=systemd:/x\n0::/x", {"unified/x/cpu.max": "100000 50000"}, 2.0),
        ("4:cpu,cpuacct:/d\n0::/", {"cpu,cpuacct/d/cpu.cfs_quota_us": "50000"}, 0.5),
        ("4:cpuacct,cpu:/host/path", {"cpu/cpu.cfs_quota_us": "250000"}, 2.5),
        ("4:cpu:/d/e", {"cpu/d/e/cpu.cfs_quota_us": "-1", "cpu/d/cpu.cfs_quota_us": "400000"}, 4.0),
        ("5:cpuset:/d\n6:memory:/d", {"cpuset/d/cpu.cfs_quota_us": "100000"}, None),
    ],
)
def test_the_smallest_quota_of_the_groups_around_us_counts(
    tmp_path: Path, groups: str, files: dict[str, str], quota: float | None
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups + "\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
        if "cfs_quota" in name:
            path.with_name("cpu.cfs_period_us").write_text("100000\n")
    assert find_cores(tmp_path, {}).quota == quota


def test_hyperthreads_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 5})
    for cpu in range(8):
        topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    assert find_cores(tmp_path, {}) == Cores(4, 2)
    assert find_cores(tmp_path, {"OMP_NUM_THREADS": "6,2"}).threads == 6
    assert find_cores(tmp_path, {"OMP_NUM_THREADS": "many"}).threads == 2


def test_every_openmp_runtime_of_a_process_is_found() -> None:
    memory_map = (
        "7f00-7f01 r-xp 00000000 fe:00 11  /usr/lib/x86_64-linux-gnu/libgomp.so.1.0.0\n"
        "7f02-7f03 r--p 00000000 fe:00 11  /usr/lib/x86_64-linux-gnu/libgomp.so.1.0.0\n"
        "7f04-7f05 r-xp 00000000 fe:00 12  /venv/sklearn.libs/libgomp-a34b3233.so.1\n"
        "7f06-7f07 r-xp 00000000 fe:00 13  /opt/my tools/libiomp5.so\n"
        "7f08-7f09 r-xp 00000000 fe:00 14  /usr/lib/libgompertz.txt\n"
        "7f0a-7f0b rw-p 00000000 00:00 0   [heap]\n"
    )
    assert openmp_runtimes(memory_map) == [
        "/opt/my tools/libiomp5.so",
        "/usr/lib/x86_64-linux-gnu/libgomp.so.1.0.0",
        "/venv/sklearn.libs/libgomp-a34b3233.so.1",
    ]


@pytest.mark.parametrize("first", ["kvtrove", "torch"])
@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_threads_of_torch_spin_as_long_as_the_user_says(given: dict[str, str], first: str) -> None:
    code = "import json, os, sys, types\n"
    if first == "torch":
        code += "sys.modules['torch'] = types.ModuleType('torch')\n"
    code += "import kvtrove\nprint(json.dumps({name: os.environ[name] for name in sys.argv[1:] if name in os.environ}))"
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environ = {name: value for name, value in os.environ.items() if name not in names} | given
    command = [sys.executable, "-c", code, *names]
    said = json.loads(subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout)
    assert said == (given or ({"GOMP_SPINCOUNT": "3000"} if first == "kvtrove" else {}))
    assert spinning(said).startswith(", ".join(f"{name}={value}" for name, value in said.items()) or "spins: ")
