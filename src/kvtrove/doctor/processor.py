"""Instruction sets, threads, and who else wants the cores."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from kvtrove import kernels
from kvtrove.config import Environment
from kvtrove.doctor.check import Check, text_of
from kvtrove.doctor.proof import problems
from kvtrove.kernels.cores import Cores, find_cores, openmp_runtimes, spinning

SECTION = "processor"
BUILD = "pip install --force-reinstall --no-deps kvtrove  # in a checkout: pip install -e ."
LONGEST_SPIN = 10_000
"""Of GOMP_SPINCOUNT: rounds after which another process has lost milliseconds of a core."""


def examine(root: Path) -> Iterator[Check]:
    """root: where proc and sys are."""
    cores = find_cores(root)
    yield from _instructions()
    yield _threads(cores)
    yield _quota(cores)
    yield _load(cores, os.getloadavg()[0])
    # torch and the kernels are loaded: all runtimes are mapped
    yield from _openmp(openmp_runtimes(text_of(root / "proc/self/maps") or ""), os.environ)


def _instructions() -> Iterator[Check]:
    try:
        chosen, known = kernels.isa(Environment.read().isa), kernels.levels()
    except (ImportError, ValueError) as error:
        yield Check("kernels", SECTION, "CPU kernels: none", str(error), None, "warning", (BUILD,))
        return
    wrong = {level: found for level in known if (found := problems(level))}
    text = f"CPU kernels: {chosen}; proven: {', '.join(level for level in known if level not in wrong) or 'none'}"
    value = {"chosen": chosen, "present": list(known), "wrong": wrong}
    if wrong:
        right = [level for level in known if level not in wrong]
        said = "; ".join(f"{level} gets {' and '.join(found)} wrong" for level, found in wrong.items())
        meaning = f"{said}: answers of these levels are not to be trusted."
        fix = f"export KVTROVE_ISA={right[-1]}" if right else BUILD
        yield Check("kernels", SECTION, text, meaning, value, "warning", (fix,))
    elif chosen == "portable":
        meaning = "Neither AVX2 nor AVX-512 was found: everything is many times slower than on a newer processor."
        yield Check("kernels", SECTION, text, meaning, value, "warning")
    elif chosen != known[-1]:
        meaning = f"KVTROVE_ISA keeps this processor from {known[-1]}, which is faster."
        yield Check("kernels", SECTION, text, meaning, value, "note", ("unset KVTROVE_ISA",))
    else:
        meaning = "Products and attention of every level were computed here and agree with plain arithmetic."
        yield Check("kernels", SECTION, text, meaning, value)


def _threads(cores: Cores) -> Check:
    own, torchs = cores.threads, torch.get_num_threads()
    text = f"threads: {own} ({cores.reason}), torch {torchs}, on {cores.usable} of {os.cpu_count()} processors"
    value = {
        "kernels": own,
        "torch": torchs,
        "reason": cores.reason,
        "usable": cores.usable,
        "physical": cores.physical,
        "processors": os.cpu_count(),
    }
    if max(own, torchs) > cores.usable:
        meaning = (
            f"More threads than the {cores.usable} processors that this process may use: they wait for one another."
        )
        return Check("threads", SECTION, text, meaning, value, "warning", (f"export OMP_NUM_THREADS={cores.physical}",))
    return Check("threads", SECTION, text, "One thread a core is fastest; --threads sets another number.", value)


def _quota(cores: Cores) -> Check:
    if cores.quota is None:
        return Check("cpu_quota", SECTION, "CPU quota: none", "No control group stops this process (cpu.max).")
    text = f"CPU quota: {cores.quota:g} processors"
    if cores.quota >= cores.physical:
        return Check("cpu_quota", SECTION, text, "Enough for a thread on every core.", cores.quota)
    meaning = f"Less than the {cores.physical} cores: with {cores.threads} threads none is stopped for using it up."
    fix = (
        f"docker update --cpus {cores.physical} CONTAINER",
        f"systemctl set-property kvtrove.service CPUQuota={100 * cores.physical}%",
    )
    return Check("cpu_quota", SECTION, text, meaning, cores.quota, "note", fix)


def _load(cores: Cores, load: float) -> Check:
    text = f"load of the last minute: {load:.2f} on {cores.usable} processors"
    if load <= cores.usable / 2:
        return Check("load", SECTION, text, "Nobody else needs the cores.", load)
    meaning = "Other processes take their share of every step: what is measured now is slower than this machine can be."
    free = max(1, int(cores.usable - load))
    fix = ("ps -eo pcpu,pid,args --sort=-pcpu | head", f"kvtrove serve MODEL --threads {free}")
    return Check("load", SECTION, text, meaning, load, "warning", fix)


def _openmp(runtimes: list[str], environ: Mapping[str, str]) -> Iterator[Check]:
    if len(runtimes) > 1:
        text = f"OpenMP: {len(runtimes)} runtimes, {', '.join(runtimes)}"
        own = next((path for path in runtimes if "/torch/" in path), runtimes[0])
        meaning = "Each has threads of its own, and these compete for the cores."
        yield Check("openmp", SECTION, text, meaning, runtimes, "warning", (f"export LD_PRELOAD={own}",))
    else:
        text = f"OpenMP: {runtimes[0] if runtimes else 'none'}"
        yield Check(
            "openmp", SECTION, text, "One runtime at most: torch's. The kernels have threads of their own.", runtimes
        )
    how = spinning(environ)
    spins = environ.get("GOMP_SPINCOUNT", "")
    long = spins == "infinite" or (spins.isdigit() and int(spins) > LONGEST_SPIN)
    if how.startswith("spins") or environ.get("OMP_WAIT_POLICY", "").lower() == "active" or long:
        meaning = "Idle threads of torch keep a core busy, which costs every other thread there milliseconds a step."
        fix = ("unset OMP_WAIT_POLICY", "export GOMP_SPINCOUNT=3000")
        yield Check("spinning", SECTION, f"idle OpenMP threads: {how}", meaning, how, "warning", fix)
    else:
        meaning = "Idle threads of torch sleep soon and leave the cores to others."
        yield Check("spinning", SECTION, f"idle OpenMP threads: {how}", meaning, how)
