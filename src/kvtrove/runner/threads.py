"""Threads for what is left to torch in a step whose layers the kernels compute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

SHARE = 4
"""One thread in so many. Between layers' kernels torch has loops of a millisecond: on few cores a loop of OpenMP waits
far longer whenever one of its threads is not running, as when the server parses requests (256 rows drawn with 20
log-probabilities beside load, two cores: 250 ms a step with two threads, 130 with one)."""


@contextlib.contextmanager
def few_threads() -> Iterator[None]:
    """Fewer threads for torch's operations of this thread, until the end of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // SHARE))
    try:
        yield
    finally:
        torch.set_num_threads(before)
