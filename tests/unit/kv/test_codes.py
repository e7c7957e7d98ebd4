"""Codes of few bits: packing is exact, turning changes no product, fits beat the grid they start from."""

from __future__ import annotations

import pytest
import torch

from kvtrove.kv.formats.codes import dequantise, pack, quantise, turn, turn_back, unpack


@pytest.mark.parametrize("bits", [2, 4])
def test_codes_fill_bytes_from_their_lowest_bits(bits: int) -> None:
    codes = torch.randint(2**bits, (5, 3, 48), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (5, 3, 48 * bits // 8)
    assert torch.equal(unpack(packed, bits), codes)
    expected = sum(int(codes[0, 0, i * 48 * bits // 8]) << bits * i for i in range(8 // bits))
    assert packed[0, 0, 0] == expected


@pytest.mark.parametrize("dim", [8, 24, 64, 80, 128])
def test_turned_vectors_have_the_products_of_the_vectors(dim: int) -> None:
    torch.manual_seed(dim)
    x, y = torch.randn(2, 7, dim)
    # butterflies in float32: three roundings of 2^-24 for each of at most 7 levels, on vectors of length sqrt(dim)
    close = {"atol": 21 * 2**-24 * dim, "rtol": 0.0}
    torch.testing.assert_close(
        (turn(x).double() * turn(y).double()).sum(-1), (x.double() * y.double()).sum(-1), **close
    )
    torch.testing.assert_close(turn_back(turn(x)), x, **close)


def test_turning_spreads_an_outlier() -> None:
    x = torch.zeros(1, 64)
    x[0, 5] = 8.0
    assert torch.equal(turn(x).abs(), torch.ones(1, 64))


@pytest.mark.parametrize("bits", [2, 4])
def test_fits_beat_the_grid_from_minimum_to_maximum(bits: int) -> None:
    torch.manual_seed(bits)
    x = torch.randn(500, 64)
    error = (dequantise(*quantise(x, bits)) - x).square().mean()
    low, most = x.amin(-1, keepdim=True), 2**bits - 1
    step = (x.amax(-1, keepdim=True) - low) / most
    grid = (((x - low) / step).round() * step + low - x).square().mean()
    assert error < grid


@pytest.mark.parametrize("value", [0.0, 3.25, -60000.0])
def test_a_constant_vector_needs_no_codes(value: float) -> None:
    codes, scale, zero = quantise(torch.full((1, 16), value), 4)
    assert torch.equal(dequantise(codes, scale, zero), torch.full((1, 16), value))
