"""The CPU kernels: one C++ extension, loaded at the first call. Arrays pass as raw pointers, without torch's ABI."""

from __future__ import annotations

import functools
import importlib
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

MEMORY_MAP = Path("/proc/self/maps")
_OPENMP = re.compile(r"/.*/lib(?:gomp|omp|iomp5)(?:-\w+)?\.so[.\d]*$", re.MULTILINE)


def copy_rows(arena: NDArray[np.uint8] | Tensor, pairs: NDArray[np.int32] | Tensor, *, num_threads: int = 0) -> None:
    """Copy whole rows of `arena` in place, as if pair by pair: a later pair reads what an earlier one wrote.

    arena: uint8 [num_rows, row_bytes], contiguous, on the CPU. pairs: int32 [n, 2] of (source row, target row).
    num_threads: 0 lets the amount of data decide, up to OpenMP's number of threads.

    Raises IndexError, before anything is copied, for a row that does not exist; ValueError for a negative
    num_threads; TypeError for another dtype, shape, layout or device.
    """
    _extension().copy_rows(arena, pairs, num_threads)


def isa(wanted: str = "auto") -> str:
    """The instruction set that kernels run at: "amx", "avx512", "avx2" or "portable".

    wanted: "auto" is the best this processor has; a name (KVTROVE_ISA) forces it.
    Raises ValueError when the name is unknown or the processor lacks it.
    """
    return str(_extension().isa(wanted))


def openmp_runtimes(memory_map: str) -> list[str]:
    """Paths of the OpenMP runtimes that a process has mapped, given the text of its /proc/self/maps."""
    return sorted(set(_OPENMP.findall(memory_map)))


@functools.cache
def _extension() -> Any:
    """The loaded `_cpu` module. ImportError says how to build it."""
    # torch first: its wheel carries libgomp.so.1, and the loader then gives the extension that same runtime. Two
    # runtimes in one process would each start a thread per core and compete for them.
    importlib.import_module("torch")
    try:
        extension = importlib.import_module("kvtrove.kernels._cpu")
    except ImportError as error:
        raise ImportError(
            f"the CPU kernels cannot be loaded ({error}); build them with 'pip install -e .' in the repository"
        ) from error
    runtimes = openmp_runtimes(MEMORY_MAP.read_text()) if MEMORY_MAP.exists() else []
    if len(runtimes) > 1:
        warnings.warn(
            f"{len(runtimes)} OpenMP runtimes are loaded and compete for the same cores: {', '.join(runtimes)}; "
            "import kvtrove before the library that brings the other one",
            RuntimeWarning,
            stacklevel=3,
        )
    return extension
