"""What the machine does at best, as `kvtrove bench` measures it: the limits of decoding and of reading prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator

from kvtrove.bench.engine.limits import READ_BYTES, Limits
from kvtrove.bench.engine.timing import Clock
from kvtrove.doctor.check import Check
from kvtrove.plan.capacity import readable

SECTION = "speed"
DTYPE = "bfloat16"
SECONDS, FEWEST = 1.0, 3
"""Samples are taken for so long, at least so many of them; with the preparation it is 3 s at most."""
ROOM = 4 * READ_BYTES
"""Bytes that must be available, so that measuring takes no memory from a server on this machine."""


def examine(available: int, clock: Clock = time.perf_counter) -> Iterator[Check]:
    """available: bytes of memory."""
    if available < ROOM:
        text = f"not measured: {readable(available)} of memory are available"
        yield Check("speed", SECTION, text, f"Measuring takes {readable(ROOM)}.", None, "note")
        return
    limits = Limits((DTYPE,), "cpu", clock)
    start, samples = clock(), 0
    while samples < FEWEST or clock() - start < SECONDS:
        limits.sample()
        samples += 1
    read = (limits.read_gb_per_s.value or 0.0) * 1e9
    peak = (limits.peak_tflop_per_s(DTYPE).value or 0.0) * 1e12
    products = (limits.matmul_tflop_per_s[DTYPE].value or 0.0) * 1e12
    decode = f"A decoded token reads all weights: 1GiB of them allow one user {read / 2**30:,.1f} tokens/s at most."
    yield Check("read_bandwidth", SECTION, f"reading memory: {read / 1e9:,.1f} GB/s", decode, read)
    prompt = (
        f"A prompt token takes 2 operations a weight, so a billion weights allow {peak / 2e9:,.0f} tokens/s at most."
    )
    text = f"multiplying bfloat16: {peak / 1e12:,.2f} TFLOP/s, torch's products {products / 1e12:,.2f}"
    yield Check("matmul_peak", SECTION, text, prompt, {"peak": peak, "torch": products})
