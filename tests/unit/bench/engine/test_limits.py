"""What a machine can do at best."""

from __future__ import annotations

import time

import pytest

from kvtrove.bench.engine.limits import MATMUL, Limits


@pytest.mark.parametrize(
    ("bf16", "float32", "of_bf16", "of_float32"),
    [(1.0, 4.0, 1.0, 4.0), (40.0, 4.0, 4.0, 4.0)],
    ids=["instructions for bf16", "bf16 in software"],
)
def test_the_peak_of_a_dtype_may_be_that_of_a_wider_one(
    bf16: float, float32: float, of_bf16: float, of_float32: float
) -> None:
    """The first two columns are seconds of a product, the others those from which the peaks must come."""
    limits = Limits(("bfloat16", "float32"), "cpu", time.perf_counter)
    limits._flops = dict.fromkeys(limits._flops, 1e12)
    limits.samples.add(MATMUL + "bfloat16", bf16)
    limits.samples.add(MATMUL + "float32", float32)
    assert limits.peak_tflop_per_s("bfloat16").value == pytest.approx(1 / of_bf16)
    assert limits.peak_tflop_per_s("float32").value == pytest.approx(1 / of_float32)
