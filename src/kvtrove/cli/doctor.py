"""`kvtrove doctor`: what this machine and this installation offer, and what is wrong with them."""

from __future__ import annotations

import json as json_format
import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer

from kvtrove import __version__, kernels
from kvtrove.cli.options import JsonFlag
from kvtrove.cli.text import say
from kvtrove.config import Environment
from kvtrove.kernels.cores import find_cores, openmp_runtimes, spinning
from kvtrove.plan.capacity import readable
from kvtrove.plan.memory import available_bytes

PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "jinja2", "typer", "rich")


@dataclass
class Report:
    """What was found. memory: bytes. kernels: instruction set of the CPU kernels, None when they do not load.

    threads: of the kernels, and why; quota: processors' worth of time that control groups grant, None without a limit.
    load: processes that wanted to run in the last minute.
    huge_pages: whether packed weights get them, and what the system says about them.
    """

    versions: dict[str, str] = field(default_factory=dict)
    cpu: dict[str, int] = field(default_factory=dict)
    kernels: str | None = None
    threads: dict[str, Any] = field(default_factory=dict)
    openmp: list[str] = field(default_factory=list)
    memory: dict[str, int | None] = field(default_factory=dict)
    huge_pages: dict[str, str] = field(default_factory=dict)
    cuda: list[dict[str, Any]] = field(default_factory=list)
    load: float = 0.0
    warnings: list[str] = field(default_factory=list)


def doctor(json: JsonFlag = False) -> None:
    """Show versions, processor, memory and GPUs, and warn about what will make inference slow."""
    report = examine()
    if json:
        typer.echo(json_format.dumps(asdict(report)))
        return
    for title, lines in _sections(report).items():
        say(title, "bold")
        for line in lines:
            say(f"  {line}")
    for warning in report.warnings:
        say(f"warning: {warning}", "yellow")
    if not report.warnings:
        say("nothing to warn about", "green")


def examine(root: Path = Path("/")) -> Report:
    """Look at everything. `root`: where proc and sys are (tests bring their own)."""
    report = Report()
    report.versions = {"kvtrove": __version__, "python": platform.python_version()}
    report.versions |= {name: _version(name) for name in PACKAGES}
    cores = find_cores(root)
    _examine_kernels(report)
    _examine_huge_pages(report, root)
    _examine_torch(report)
    _examine_neighbours(report, cores.usable)
    # after torch and the kernels are loaded: only now all runtimes are mapped
    report.openmp = openmp_runtimes((root / "proc/self/maps").read_text())
    if len(report.openmp) > 1:
        report.warnings.append(
            f"{len(report.openmp)} OpenMP runtimes compete for the cores: {', '.join(report.openmp)}"
        )
    report.threads = {"number": cores.threads, "reason": cores.reason, "quota": cores.quota}
    report.cpu["cores"] = os.cpu_count() or 1
    report.cpu["usable"] = cores.usable
    if report.cpu["torch_threads"] > report.cpu["usable"]:
        report.warnings.append(
            f"torch uses {report.cpu['torch_threads']} threads on {report.cpu['usable']} usable cores"
        )
    total = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text().splitlines())["MemTotal"]
    report.memory = {
        "total": int(total.split()[0]) * 1024,
        "control_group_limit": _control_group_limit(root),
        "available": available_bytes(root),
    }
    return report


def _examine_kernels(report: Report) -> None:
    try:
        report.kernels = kernels.isa(Environment.read().isa)
    except (ImportError, ValueError) as error:
        report.warnings.append(str(error))
        return
    if report.kernels == "portable":
        report.warnings.append("the CPU kernels found neither AVX2 nor AVX-512 and run in portable code, which is slow")


def _examine_huge_pages(report: Report, root: Path) -> None:
    """By packing weights of one huge page, and asking where they lie."""
    if report.kernels is None:
        return
    from kvtrove.kernels.linear import PackedWeights

    weights = PackedWeights(1024, 1024)
    huge, total = kernels.huge_page_bytes()
    report.huge_pages["packed_weights"] = "yes" if huge >= weights.nbytes else "no"
    for name, path in (
        ("transparent", "sys/kernel/mm/transparent_hugepage/enabled"),
        ("pool", "proc/sys/vm/nr_hugepages"),
    ):
        report.huge_pages[name] = (root / path).read_text().strip() if (root / path).exists() else "unknown"
    if total and huge < weights.nbytes:
        report.warnings.append(
            "packed weights get no huge pages, so decoding takes up to half as long again: "
            "'echo madvise > /sys/kernel/mm/transparent_hugepage/enabled' allows them"
        )


def _examine_neighbours(report: Report, usable: int) -> None:
    """Who else wants the cores."""
    report.load = round(os.getloadavg()[0], 2)
    if report.load > usable / 2:
        report.warnings.append(f"other processes keep {report.load:g} of {usable} cores busy (load of the last minute)")


def _examine_torch(report: Report) -> None:
    import torch

    report.cpu["torch_threads"] = torch.get_num_threads()
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        report.cuda.append(
            {"device": f"cuda:{index}", "name": torch.cuda.get_device_name(index), "total": total, "free": free}
        )


def _control_group_limit(root: Path) -> int | None:
    """Bytes that a container may use (control groups version 2, then 1); None is no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = root / "sys/fs/cgroup" / name
        if path.exists():
            text = path.read_text().strip()
            # version 1 writes "no limit" as the largest multiple of the page size
            return int(text) if text.isdigit() and int(text) < 2**62 else None
    return None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _sections(report: Report) -> dict[str, list[str]]:
    memory = {
        name.replace("_", " "): "none" if size is None else readable(size) for name, size in report.memory.items()
    }
    cpu = report.cpu
    return {
        "versions": [f"{name} {number}" for name, number in report.versions.items()],
        "processor": [
            f"{cpu['usable']} of {cpu['cores']} cores usable, {cpu['torch_threads']} torch threads",
            f"CPU kernels: {report.kernels or 'not loaded'}, {report.threads['number']} threads "
            f"({report.threads['reason']}; CPU quota: {report.threads['quota'] or 'none'})",
            *(f"OpenMP (torch): {path}, {spinning(os.environ)}" for path in report.openmp),
            f"load of the last minute: {report.load:g}",
        ],
        "memory": [
            *(f"{name}: {size}" for name, size in memory.items()),
            *(f"huge pages, {name.replace('_', ' ')}: {value}" for name, value in report.huge_pages.items()),
        ],
        "CUDA": [
            f"{d['device']}: {d['name']}, {readable(d['free'])} of {readable(d['total'])} free" for d in report.cuda
        ]
        or ["no device"],
    }
