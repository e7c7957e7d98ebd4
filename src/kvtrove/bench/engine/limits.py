"""What the machine can do at best, measured in the same minutes as the engine.

Reading memory; multiplying matrices with torch; and the peak of the instructions that the CPU kernels multiply with,
from registers. A product can be as slow as torch's, so the peak is the limit where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kvtrove import kernels
from kvtrove.bench.engine.timing import Clock, Samples, over, scaled
from kvtrove.bench.summary import Figure
from kvtrove.config import Environment

READ_BYTES = 512 * 2**20
"""Read at a time: several times what last-level caches hold."""
SIDE = 1024
"""Of the square matrices that are multiplied."""
LEAST_SECONDS = 0.02
"""Products are repeated until they take this long, so that starting threads does not show."""

PEAK_ROUNDS = 1000
"""Of kernels.run_at_peak, to begin with."""

READ, MATMUL, PEAK = "read_s", "matmul_s.", "peak_s."


def reduction(name: str) -> Callable[[Tensor], Tensor]:
    """Ways to touch every byte once. Which one is not held up by arithmetic differs between processors and torches."""
    return {
        "uint8 max": lambda data: data.max(),
        "float32 amax": lambda data: data.view(torch.float32).amax(),
        "float64 sum": lambda data: data.view(torch.float64).sum(),
    }[name]


REDUCTIONS = ("uint8 max", "float32 amax", "float64 sum")


class Limits:
    """Samples of both limits; `sample` is called between the steps of what is measured.

    dtypes: of the products. The way of reading that is fastest at the start is kept.
    """

    def __init__(self, dtypes: Sequence[str], device: str, clock: Clock) -> None:
        self.clock, self.device = clock, device
        self.samples = Samples()
        self._data = torch.ones(READ_BYTES // 8, dtype=torch.float64, device=device).view(torch.uint8)
        self.reading = min(REDUCTIONS, key=lambda name: min(self._seconds_to_read(name) for _ in range(2)))
        self._flops: dict[str, float] = {}
        self._products: dict[str, Callable[[], None]] = {}
        self._peaks: dict[str, Callable[[], float]] = {}
        self._operations: dict[str, float] = {}
        for dtype in dict.fromkeys(dtypes):
            self._prepare(dtype)
            if device == "cpu":
                self._prepare_peak(dtype)

    def _prepare(self, dtype: str) -> None:
        generator = torch.Generator().manual_seed(0)
        a, b = (
            torch.randn(SIDE, SIDE, generator=generator).to(device=self.device, dtype=getattr(torch, dtype))
            for _ in range(2)
        )
        out = torch.empty_like(a)

        def multiply(times: int) -> None:
            for _ in range(times):
                torch.mm(a, b.t(), out=out)

        self._seconds(lambda: multiply(1))  # the first product sets things up
        once = self._seconds(lambda: multiply(1))
        times = max(1, min(1000, round(LEAST_SECONDS / once))) if once > 0 else 1
        self._flops[dtype] = 2.0 * SIDE**3 * times
        self._products[dtype] = lambda: multiply(times)

    def _prepare_peak(self, dtype: str) -> None:
        """Nothing where the kernels are missing, or portable."""
        try:
            level = _level(dtype)
            operations = kernels.run_at_peak(level, PEAK_ROUNDS)  # starts the threads
        except ImportError:
            return
        if not operations:
            return
        once = self._seconds(lambda: kernels.run_at_peak(level, PEAK_ROUNDS))
        rounds = PEAK_ROUNDS * max(1, min(1000, round(LEAST_SECONDS / once)) if once > 0 else 1)
        self._operations[dtype] = kernels.run_at_peak(level, rounds)
        self._peaks[dtype] = lambda: kernels.run_at_peak(level, rounds)

    @torch.inference_mode()
    def sample(self) -> None:
        """One reading, and of each dtype one product and one run at the peak."""
        self.samples.add(READ, self._seconds_to_read(self.reading))
        for dtype, product in self._products.items():
            self.samples.add(MATMUL + dtype, self._seconds(product))
        for dtype, run in self._peaks.items():
            self.samples.add(PEAK + dtype, self._seconds(run))

    @property
    def read_gb_per_s(self) -> Figure:
        return scaled(over(self._data.nbytes, self.samples.median(READ)), 1e-9)

    @property
    def matmul_tflop_per_s(self) -> dict[str, Figure]:
        return {
            dtype: scaled(over(flops, self.samples.median(MATMUL + dtype)), 1e-12)
            for dtype, flops in self._flops.items()
        }

    @property
    def instructions_tflop_per_s(self) -> dict[str, Figure]:
        """Peak of the CPU's instructions: tiles of bfloat16 where there are any, float32 vectors else."""
        return {
            dtype: scaled(over(operations, self.samples.median(PEAK + dtype)), 1e-12)
            for dtype, operations in self._operations.items()
        }

    def peak_tflop_per_s(self, dtype: str) -> Figure:
        """Of such numbers: in their own dtype, or in a wider one where that is faster; products where that is more.

        Processors without instructions for bfloat16 multiply it many times slower than float32.
        """
        least = getattr(torch, dtype).itemsize
        measured = [*self.matmul_tflop_per_s.items(), *self.instructions_tflop_per_s.items()]
        wide = [figure for name, figure in measured if getattr(torch, name).itemsize >= least]
        return max(wide, key=lambda figure: figure.value or 0.0)

    def _seconds_to_read(self, name: str) -> float:
        read = reduction(name)
        return self._seconds(lambda: read(self._data))

    def _seconds(self, work: Callable[[], object]) -> float:
        start = self.clock()
        work()
        synchronize(self.device)
        return self.clock() - start


def _level(dtype: str) -> str:
    """Of the CPU kernels for such numbers: tiles multiply bfloat16 alone."""
    level = kernels.isa(Environment.read().isa)
    return "avx512" if level == "amx" and dtype != "bfloat16" else level


def synchronize(device: str) -> None:
    """Wait until a device has done what it was told; a CPU always has."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
