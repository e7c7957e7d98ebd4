"""Cores that this process may use: the size of the kernels' thread pool, and what makes it so."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_OPENMP = re.compile(r"/.*/lib(?:gomp|omp|iomp5)(?:-\w+)?\.so[.\d]*$", re.MULTILINE)


@dataclass(frozen=True)
class Cores:
    """What limits the threads of a process.

    usable: processors that it may run on (affinity). physical: cores that these belong to; two hyperthreads of a core
    share its vector units and its caches, so a second thread there only gets into the way of the first.
    quota: processors' worth of time that control groups grant, None without a limit.
    asked: OMP_NUM_THREADS, None where it is not set.
    """

    usable: int
    physical: int
    quota: float | None = None
    asked: int | None = None

    @property
    def threads(self) -> int:
        """Threads that kernels use when nobody names a number.

        A quota is rounded down: threads that use it up are all stopped for the rest of its period.
        """
        if self.asked is not None:
            return self.asked
        return self.physical if self.quota is None else max(1, min(self.physical, int(self.quota)))

    @property
    def reason(self) -> str:
        """Why there are so many threads, as part of a sentence."""
        if self.asked is not None:
            return "OMP_NUM_THREADS"
        if self.quota is not None and max(1, int(self.quota)) < self.physical:
            return f"CPU quota of {self.quota:g}"
        return "one a core" if self.physical == self.usable else "one a core, not one a hyperthread"


def find_cores(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> Cores:
    """root: where proc and sys are (tests bring their own)."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    topology = root / "sys/devices/system/cpu"
    physical = {_text(topology / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in usable}
    asked = environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return Cores(
        len(usable),
        len(physical),
        min(_quotas(root), default=None),
        int(asked) if asked.isdigit() and int(asked) > 0 else None,
    )


def openmp_runtimes(memory_map: str) -> list[str]:
    """Paths of the OpenMP runtimes that a process has mapped, given the text of its /proc/self/maps."""
    return sorted(set(_OPENMP.findall(memory_map)))


def spinning(environ: Mapping[str, str] = os.environ) -> str:
    """How idle threads of OpenMP wait, as part of a sentence."""
    asked = [f"{name}={environ[name]}" for name in _WAITING if name in environ]
    return ", ".join(asked) or "spins: set GOMP_SPINCOUNT=3000 where other processes run"


def _quotas(root: Path) -> Iterator[float]:
    """The limits of our control group and of those around it, in processors: the smallest counts."""
    groups = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2, alone or beside version 1
            mounts, read = (groups, groups / "unified"), _version_2
        elif "cpu" in controllers.split(","):
            mounts, read = (groups / controllers, groups / "cpu"), _version_1
        else:
            continue
        inside = PurePosixPath(*(part for part in PurePosixPath(path).parts if part not in ("/", "..")))
        for mount in dict.fromkeys(mounts):
            # a container sees its own group as the mount itself, under a path that is its host's
            for group in (inside, *inside.parents):
                quota = read(mount / group)
                if quota is not None:
                    yield quota


def _version_2(group: Path) -> float | None:
    limit, _, period = _text(group / "cpu.max").partition(" ")
    return int(limit) / int(period) if limit.isdigit() and period.isdigit() else None  # "max" is no limit


def _version_1(group: Path) -> float | None:
    limit, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    return int(limit) / int(period) if limit.isdigit() and period.isdigit() else None  # -1 is no limit


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
