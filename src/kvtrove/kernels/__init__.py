"""The CPU kernels: one C++ extension, loaded at the first call. Arrays pass as raw pointers, without torch's ABI."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

from kvtrove.kernels.cores import find_cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


def copy_rows(arena: NDArray[np.uint8] | Tensor, pairs: NDArray[np.int32] | Tensor, *, num_threads: int = 0) -> None:
    """Copy whole rows of `arena` in place, as if pair by pair: a later pair reads what an earlier one wrote.

    arena: uint8 [num_rows, row_bytes], contiguous, on the CPU. pairs: int32 [n, 2] of (source row, target row).
    num_threads: 0 lets the amount of data decide, up to `threads()`.

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
