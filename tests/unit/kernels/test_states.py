"""Kernels of mixers with running states: the numbers of plain torch, and bits that depend on a token's past alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvtrove.kernels import states as kernels
from kvtrove.models.layers import state as states
from kvtrove.models.layers.delta import GatedDelta
from kvtrove.models.layers.linear import Joint, Linear
from kvtrove.models.layers.mamba import Mamba2
from kvtrove.models.layers.state import StateBatch, causal_conv
from kvtrove.models.state_spec import DeltaSpec, MambaSpec

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


def delta(key_heads: int, heads: int, k_dim: int, v_dim: int) -> GatedDelta:
    spec = DeltaSpec(key_heads, heads, k_dim, v_dim, kernel=4)
    numbers = draw(4, spec.width), draw(heads).exp(), draw(heads), draw(v_dim)
    return GatedDelta(spec, Joint([], ()), *numbers, 1e-6, Linear(draw(1)))


def mamba(heads: int, head_dim: int, state: int, groups: int) -> Mamba2:
    spec = MambaSpec(heads, head_dim, state, groups, kernel=4, limits=(0.001, 0.5))
    numbers = draw(4, spec.width), draw(spec.width), draw(heads).exp(), draw(heads), draw(heads), draw(spec.inner)
    return Mamba2(spec, Joint([], ()), *numbers, 1e-6, Linear(draw(1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "mixer",
    [delta(2, 4, 16, 12), delta(1, 3, 24, 64), delta(2, 2, 128, 128), mamba(8, 16, 12, 2), mamba(4, 8, 128, 1)],
    ids=["delta narrow", "delta tile", "delta wide", "mamba narrow", "mamba wide"],
)
def test_mixers(mixer: GatedDelta | Mamba2, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against plain torch on the same numbers; then token by token, for the same bits."""
    spec, projected = mixer.spec, draw(30, mixer.spec.projected).to(dtype)
    shapes = {plane.name: plane.shape for plane in spec.planes("float32")}
    mine = {"conv": draw(4, *shapes["conv"]).to(dtype), "matrix": draw(4, *shapes["matrix"])}
    theirs, apart = ({name: x.clone() for name, x in mine.items()} for _ in range(2))

    def run(rows: slice, states: dict[str, Tensor], batch: StateBatch) -> Tensor:
        parts = (projected[rows],)
        if isinstance(spec, DeltaSpec):
            heads = spec.value_heads
            parts = parts[0].split([spec.keys, spec.keys, spec.values, spec.values, heads, heads], -1)
        return mixer.mix(parts, states, batch)

    batch = StateBatch(STARTS, SEATS, {})
    found = run(slice(0, 30), mine, batch)
    cut = [run(slice(i, i + 1), apart, StateBatch([0, 1], [2], {})) for i in range(8, 30)]
    assert torch.equal(torch.cat(cut), found[8:])
    assert all(torch.equal(apart[name][2], mine[name][2]) for name in mine)
    monkeypatch.setattr(kernels, "available", lambda x: False)
    expected = run(slice(0, 30), theirs, batch)
    assert torch.equal(mine["conv"], theirs["conv"])
    torch.testing.assert_close(mine["matrix"], theirs["matrix"], atol=2e-5, rtol=1e-4)  # sums in another order
    torch.testing.assert_close(found, expected, atol=2e-3 if dtype == torch.float32 else 3e-2, rtol=1e-2)
