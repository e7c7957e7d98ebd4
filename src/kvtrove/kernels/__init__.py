"""The CPU kernels: one C++ extension, loaded at the first call. Arrays pass as raw pointers, without torch's ABI."""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvtrove.kernels.cores import find_cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from typing_extensions import Buffer

MEMORY_USE = Path("/proc/self/smaps")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")


def copy_rows(arena: NDArray[np.uint8] | Tensor, pairs: NDArray[np.int32] | Tensor, *, num_threads: int = 0) -> None:
    """Copy whole rows of `arena` in place, as if pair by pair: a later pair reads what an earlier one wrote.

    arena: uint8 [num_rows, row_bytes], contiguous, on the CPU. pairs: int32 [n, 2] of (source row, target row).
    num_threads: 0 lets the amount of data decide, up to `threads()`.

    Raises IndexError, before anything is copied, for a row that does not exist; ValueError for a negative
    num_threads; TypeError for another dtype, shape, layout or device.
    """
    _extension().copy_rows(arena, pairs, num_threads)


def available() -> bool:
    """Whether the extension can be loaded here."""
    try:
        _extension()
    except ImportError:
        return False
    return True


def crc32c(data: Buffer, crc: int = 0) -> int:
    """CRC-32C (RFC 3720) of contiguous bytes that follow those whose checksum is `crc`; the same on every machine.

    It lets other threads run meanwhile. BufferError for an object without contiguous bytes.
    """
    return int(_extension().crc32c(data, crc))


def isa(wanted: str = "auto") -> str:
    """The instruction set that kernels run at: "amx", "avx512", "avx2" or "portable".

    wanted: "auto" is the best this processor has; a name (KVTROVE_ISA) forces it.
    Raises ValueError when the name is unknown or the processor lacks it.
    """
    return str(_extension().isa(wanted))


def levels() -> list[str]:
    """The instruction sets that this processor has, as `isa` names them; each includes the ones before it."""
    found = []
    for level in ("portable", "avx2", "avx512", "amx"):
        try:
            found.append(isa(level))
        except ValueError:
            break
    return found


def set_huge_pages(kind: str) -> None:
    """Where weights and scratch memory that are taken from now on shall lie.

    "auto": huge pages where the system gives them (madvise), "hugetlb": those of the pool in /proc/sys/vm/nr_hugepages
    as long as it lasts, "off": small pages. ValueError for another one.
    """
    _extension().set_huge_pages(kind)


def huge_page_bytes(memory_use: str | None = None) -> tuple[int, int]:
    """(bytes in huge pages, bytes in all) of the memory that holds packed weights and scratch, in whole pages of 2 MiB.

    memory_use: text of /proc/self/smaps; None reads it. Where there is no such file, nothing is in huge pages.
    """
    ranges = _extension().page_ranges()
    if memory_use is None:
        memory_use = MEMORY_USE.read_text() if MEMORY_USE.exists() else ""
    huge, ours = 0, False
    for line in memory_use.splitlines():
        if found := _MAPPING.match(line):
            start, end = (int(number, 16) for number in found.groups())
            ours = any(start < last and first < end for first, last in ranges)
        elif ours and line.startswith(("AnonHugePages:", "Private_Hugetlb:")):
            huge += int(line.split()[1]) * 1024
    return huge, sum(last - first for first, last in ranges)


def run_at_peak(wanted: str, rounds: int) -> float:
    """The most that a level can multiply: `rounds` rounds on every thread, from registers; returns the operations.

    Of bf16 tiles at "amx", of float32 vectors else; 0 where there is nothing to measure ("portable").
    """
    return float(_extension().run_at_peak(wanted, rounds))


def threads() -> int:
    """Threads that kernels of this process use, the caller's own among them."""
    return int(_extension().threads())


def set_threads(count: int) -> None:
    """Let kernels and torch use so many threads, in all engines of this process. Results do not depend on it.

    Raises ValueError for a number below 1.
    """
    if count < 1:
        raise ValueError(f"threads: {count} must be at least 1")
    _extension().set_threads(count)
    importlib.import_module("torch").set_num_threads(count)


@functools.cache
def _extension() -> Any:
    """The loaded `_cpu` module, sized for this machine. ImportError says how to build it."""
    try:
        extension = importlib.import_module("kvtrove.kernels._cpu")
    except ImportError as error:
        raise ImportError(
            f"the CPU kernels cannot be loaded ({error}); build them with 'pip install -e .' in the repository"
        ) from error
    extension.set_threads(find_cores().threads)
    return extension
