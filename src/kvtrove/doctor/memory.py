"""Memory, huge pages, swap, and how many files may be open."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kvtrove import kernels
from kvtrove.doctor.check import Check, text_of
from kvtrove.kernels.linear import PackedWeights
from kvtrove.plan.capacity import readable
from kvtrove.plan.memory import host

SECTION = "memory"
FILES = 4096 + 64
"""Open files of a server at its limit of connections (`--max-connections`), and what else it holds."""
THP = "sys/kernel/mm/transparent_hugepage/enabled"
LITTLE_SWAPPED = 64 * 2**20
"""Bytes of swap that every machine uses after a while."""


def examine(root: Path) -> Iterator[Check]:
    """root: where proc and sys are."""
    meminfo = {
        name: int(rest.split()[0]) * 1024
        for name, _, rest in (line.partition(":") for line in (root / "proc/meminfo").read_text().splitlines())
    }
    yield _memory(meminfo, root)
    yield _huge_pages(root)
    yield _swap(meminfo)
    yield _files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield _cuda()


def _memory(meminfo: dict[str, int], root: Path) -> Check:
    allowed, total = host(root), meminfo["MemTotal"]
    value = {"total": total, "allowed": allowed.total, "available": allowed.free}
    text = f"memory: {readable(allowed.free)} of {readable(total)} available"
    if allowed.total < total:
        text += f", {readable(allowed.total)} allowed"
        meaning = "A control group or ulimit caps this process; the cache is sized by what that leaves."
        return Check("memory", SECTION, text, meaning, value, "note")
    meaning = "Weights and cache share it: `kvtrove plan MODEL` says what fits."
    return Check("memory", SECTION, text, meaning, value)


def _huge_pages(root: Path) -> Check:
    """By packing weights of one huge page, and asking where they lie."""
    setting = text_of(root / THP) or "unknown"
    value: dict[str, Any] = {"transparent": setting, "pool": text_of(root / "proc/sys/vm/nr_hugepages") or "unknown"}
    if not kernels.available():
        return Check(
            "huge_pages", SECTION, f"huge pages: {setting}", "No kernels, so no packed weights.", value, "note"
        )
    weights = PackedWeights(1024, 1024)
    huge, total = kernels.huge_page_bytes()
    value |= {"packed_weights": total, "in_huge_pages": huge}
    text = f"huge pages: {setting}; {readable(huge)} of {readable(total)} of packed weights lie in them"
    if huge >= weights.nbytes or not total:
        return Check("huge_pages", SECTION, text, "Weights are read without waiting for the table of pages.", value)
    meaning = "Decoding takes up to half as long again from small pages."
    fix = (f"echo madvise | sudo tee /{THP}",)
    return Check("huge_pages", SECTION, text, meaning, value, "warning", fix)


def _swap(meminfo: dict[str, int]) -> Check:
    total = meminfo.get("SwapTotal", 0)
    used = total - meminfo.get("SwapFree", 0)
    value = {"total": total, "used": used}
    if not total:
        meaning = "What does not fit fails at once instead of becoming slow."
        return Check("swap", SECTION, "swap: none", meaning, value)
    text = f"swap: {readable(used)} of {readable(total)} used"
    if used <= LITTLE_SWAPPED:
        meaning = "Weights or cache that were swapped out would take seconds a step; none are now."
        return Check("swap", SECTION, text, meaning, value)
    meaning = "Memory is short: a step that touches swapped pages takes seconds."
    fix = ("free -h", "sudo sysctl vm.swappiness=1", "sudo swapoff -a && sudo swapon -a")
    return Check("swap", SECTION, text, meaning, value, "warning", fix)


def _files(soft: int, hard: int) -> Check:
    unlimited = hard == resource.RLIM_INFINITY
    value = {"soft": soft, "hard": None if unlimited else hard}
    text = f"open files: {soft:,}, up to {'any number' if unlimited else f'{hard:,}'}"
    if unlimited or hard >= FILES:
        return Check("files", SECTION, text, "The server raises it as far as it may: one a connection.", value)
    meaning = f"The server has room for fewer than its {FILES - 64:,} connections, and closes idle ones."
    fix = ("ulimit -n 65536", "docker run --ulimit nofile=65536 ...", "LimitNOFILE=65536  # of a systemd unit")
    return Check("files", SECTION, text, meaning, value, "warning", fix)


def _cuda() -> Check:
    found: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found.append({"name": torch.cuda.get_device_name(index), "total": total, "free": free})
    if not found:
        return Check("cuda", SECTION, "CUDA: no device", "Everything runs on the processor.", found)
    text = ", ".join(f"cuda:{i} {d['name']}, {readable(d['free'])} free" for i, d in enumerate(found))
    return Check("cuda", SECTION, f"CUDA: {text}", "--device cuda serves from there.", found)
