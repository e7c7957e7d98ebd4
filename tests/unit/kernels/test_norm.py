"""rms_norm against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kvtrove.kernels.norm import rms_norm


def reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.double()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.double()


@given(
    rows=st.integers(1, 9),
    heads=st.integers(1, 3),
    size=st.one_of(st.integers(1, 70), st.just(896)),
    scale=st.sampled_from([1e-15, 1.0, 1e15]),
)
def test_equals_float64(rows: int, heads: int, size: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(rows * size)
    x = torch.randn(rows, heads, size, generator=generator) * scale
    weight = torch.randn(size, generator=generator)
    got = rms_norm(x, weight, 1e-6)
    assert got.shape == x.shape
    torch.testing.assert_close(got.double(), reference(x, weight, 1e-6), rtol=3e-6, atol=1e-30)


def test_views_with_gaps_are_normed_and_left_alone() -> None:
    whole = torch.randn(4, 30)
    before, part = whole.clone(), whole[:, 3:13].unflatten(-1, (2, 5))
    torch.testing.assert_close(rms_norm(part, torch.ones(5), 1e-6), rms_norm(part.clone(), torch.ones(5), 1e-6))
    assert torch.equal(whole, before)


def test_a_row_gives_the_same_bits_in_every_batch() -> None:
    x, weight = torch.randn(200, 896), torch.randn(896)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = rms_norm(x, weight, 1e-5)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(together, torch.cat([rms_norm(row, weight, 1e-5) for row in x.split(1)]))


def test_no_rows_and_bad_arguments() -> None:
    x, weight = torch.zeros(2, 4), torch.ones(4)
    assert rms_norm(torch.zeros(0, 4), weight, 1e-6).shape == (0, 4)
    with pytest.raises(TypeError, match=r"x is torch.bfloat16 on cpu, expected float32 on the CPU"):
        rms_norm(x.bfloat16(), weight, 1e-6)
    for wrong in (torch.ones(3), torch.ones(4).bfloat16(), torch.ones(8)[::2]):
        with pytest.raises(ValueError, match=r"weight is .*, expected float32 \[4\]"):
            rms_norm(x, wrong, 1e-6)
