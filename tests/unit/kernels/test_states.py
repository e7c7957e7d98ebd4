"""Kernels of mixers with running states: the numbers of plain torch, and bits that depend on a token's past alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kvtrove.kernels import states as kernels
from kvtrove.models.layers import state as states
from kvtrove.models.layers.delta import UNIT_EPS, _unit, delta_rule
from kvtrove.models.layers.state import StateBatch, causal_conv

pytest.importorskip("kvtrove.kernels._cpu", reason="the extension is not built")
STARTS, SEATS = [0, 7, 8, 30], [3, 0, 2]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "kernel"), [(20, 3), (700, 4), (64, 2)])
def test_convolution(width: int, kernel: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = draw(30, width + 5).to(dtype)[:, 2 : 2 + width], draw(kernel, width), draw(width)
    mine, theirs = (draw(4, kernel - 1, width).to(dtype) for _ in range(2))
    batch = StateBatch(STARTS, SEATS, {})
    found = causal_conv(x, weight, bias, mine, batch, silu=True)
    monkeypatch.setattr(states.kernels, "available", lambda x: False)
    expected = causal_conv(x, weight, bias, theirs, batch, silu=True)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)  # exp and a sigmoid of their own
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("key_heads", "heads", "k_dim", "v_dim"), [(2, 4, 16, 12), (1, 3, 24, 64), (2, 2, 128, 128)])
def test_gated_delta(key_heads: int, heads: int, k_dim: int, v_dim: int, dtype: torch.dtype) -> None:
    keys, values = key_heads * k_dim, heads * v_dim
    mixed, gates = draw(30, 2 * keys + values), draw(30, values + 2 * heads).to(dtype)
    z, b, a = gates.split([values, heads, heads], -1)
    decay, dt, norm = draw(heads).exp(), draw(heads), draw(v_dim)
    mine = draw(4, heads, k_dim, v_dim)
    theirs, apart = mine.clone(), mine.clone()
    batch = StateBatch(STARTS, SEATS, {})

    def run(rows: slice, matrix: Tensor, batch: StateBatch) -> Tensor:
        return kernels.gated_delta(
            *(mixed[rows], z[rows], b[rows], a[rows], matrix, batch.starts, batch.seat_rows),
            **{"key_heads": key_heads, "decay": decay, "dt": dt, "norm": norm, "eps": 1e-6, "unit_eps": UNIT_EPS},
        )

    found = run(slice(0, 30), mine, batch)
    q, k, v = mixed.split([keys, keys, values], -1)
    q, k = (_unit(x.unflatten(-1, (-1, k_dim))).repeat_interleave(heads // key_heads, 1) for x in (q, k))
    fade = (-decay * F.softplus(a.float() + dt)).exp()
    out = delta_rule(q * k_dim**-0.5, k, v.unflatten(-1, (-1, v_dim)), fade, b.float().sigmoid(), theirs, batch)
    normed = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + 1e-6) * norm
    expected = (normed * F.silu(z.float().view_as(out))).flatten(1)
    torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)  # sums of 128 products in another order
    torch.testing.assert_close(found.float(), expected, atol=2e-3 if dtype == torch.float32 else 3e-2, rtol=1e-2)
    cut = [run(slice(i, i + 1), apart, StateBatch([0, 1], [2], {})) for i in range(8, 30)]
    assert torch.equal(torch.cat(cut), found[8:])
    assert torch.equal(apart[2], mine[2])
