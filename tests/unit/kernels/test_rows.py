"""Passes over hidden states: against float64, and bit for bit against torch where it rounds in between."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kvtrove import kernels
from kvtrove.kernels.rows import add_rms_norm, gelu_tanh_and_mul, rms_norm, silu_and_mul


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
    threads = kernels.threads()
    try:
        kernels.set_threads(3)
        together = rms_norm(x, weight, 1e-5)
    finally:
        kernels.set_threads(threads)
    assert torch.equal(together, torch.cat([rms_norm(row, weight, 1e-5) for row in x.split(1)]))


@given(rows=st.integers(1, 5), size=st.integers(1, 70), wide=st.booleans())
def test_bf16_is_rounded_where_torch_rounds(rows: int, size: int, wide: bool) -> None:
    """Sums of squares differ in their last bit at most, so nearly every element has the same bits."""
    generator = torch.Generator().manual_seed(rows * size)
    x = torch.randn(rows, size, generator=generator).bfloat16()
    weight = torch.randn(size, generator=generator).to(torch.float32 if wide else torch.bfloat16)
    normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
    expected = (normed * weight).bfloat16() if wide else weight * normed.bfloat16()
    got = rms_norm(x, weight, 1e-6)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, rtol=2**-7, atol=0)
    assert (got == expected).float().mean() > 0.97


@given(rows=st.integers(1, 5), size=st.integers(1, 70), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_norm_of_a_sum(rows: int, size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows * size)
    x, added = (torch.randn(rows, size, generator=generator).to(dtype) for _ in range(2))
    weight = torch.randn(size, generator=generator).to(dtype)
    total = x + added
    got = add_rms_norm(x, added, weight, 1e-6)
    assert torch.equal(x, total)
    assert torch.equal(got, rms_norm(total, weight, 1e-6))


@given(rows=st.integers(1, 5), size=st.integers(1, 70), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_gate(rows: int, size: int, dtype: torch.dtype) -> None:
    """Of two parts of one tensor, from one end of the exponential to the other."""
    generator = torch.Generator().manual_seed(rows * size)
    whole = (torch.randn(rows, 2 * size, generator=generator) * 30).to(dtype)
    gate, up = whole.split(size, dim=1)
    expected = torch.nn.functional.silu(gate) * up
    got = silu_and_mul(gate, up)
    assert got.is_contiguous()
    torch.testing.assert_close(got, expected, rtol=1e-5 if dtype == torch.float32 else 2**-7, atol=1e-30)
    if dtype == torch.bfloat16:
        assert (got == expected).float().mean() > 0.9


@given(rows=st.integers(1, 5), size=st.integers(1, 70), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_gate_of_gelu(rows: int, size: int, dtype: torch.dtype) -> None:
    """Against float64: below zero, 1 + tanh cancels in torch's float32."""
    generator = torch.Generator().manual_seed(rows * size)
    gate, up = (torch.randn(rows, 2 * size, generator=generator) * 3).to(dtype).split(size, dim=1)
    activated = torch.nn.functional.gelu(gate.double(), approximate="tanh")
    got = gelu_tanh_and_mul(gate, up)
    if dtype == torch.float32:  # e^-2u: an error of (1 + |2u|) * 2^-22, where |2u| < 30 until gelu is below 1e-12
        torch.testing.assert_close(got.double(), activated * up, rtol=31 * 2**-22, atol=1e-11)
    else:
        expected = activated.to(dtype) * up
        torch.testing.assert_close(got, expected, rtol=2**-6, atol=1e-11)
        assert (got == expected).float().mean() > 0.9


@pytest.mark.parametrize("gate", [silu_and_mul, gelu_tanh_and_mul])
def test_a_gate_of_infinities_and_nan(gate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    got = gate(torch.tensor([[math.inf, math.nan, -200.0, 200.0]]), torch.ones(1, 4))
    assert got[0, 0] == math.inf
    assert got[0, 1].isnan()
    assert abs(got[0, 2]) < 1e-30
    assert got[0, 3] == 200


def test_no_rows_and_bad_arguments() -> None:
    x, weight = torch.zeros(2, 4), torch.ones(4)
    assert rms_norm(torch.zeros(0, 4), weight, 1e-6).shape == (0, 4)
    with pytest.raises(TypeError, match=r"x is torch.float16 on cpu, expected float32 or bfloat16 on the CPU"):
        rms_norm(x.half(), weight, 1e-6)
    for wrong in (torch.ones(3), torch.ones(4).bfloat16(), torch.ones(8)[::2]):
        with pytest.raises(ValueError, match=r"weight is .*, expected torch.float32 or float32 \[4\]"):
            rms_norm(x, wrong, 1e-6)
    for added in (torch.ones(3, 4), torch.ones(2, 4).bfloat16(), torch.ones(2, 8)[:, ::2]):
        with pytest.raises(ValueError, match="added is"):
            add_rms_norm(x, added, weight, 1e-6)
    for up in (torch.ones(2, 3), torch.ones(2, 8)[:, :4]):
        with pytest.raises(ValueError, match="expected two alike"):
            silu_and_mul(x, up)
    with pytest.raises(TypeError, match=r"gate is torch\.float64"):
        silu_and_mul(x.double(), x.double())
