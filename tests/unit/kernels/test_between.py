"""A layer's one call between attentions, against the kernels that it joins."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvtrove.kernels import rows
from kvtrove.kernels.between import Between
from kvtrove.kernels.linear import Kind, PackedWeights
from kvtrove.models.layers.norm import RMSNorm
from kvtrove.models.layers.packed import PackedLinear

HEADS, HIDDEN, INNER, NEXT = 48, 40, 72, 56


def random(*shape: int, seed: int) -> Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed))


def matrix(outputs: int, inputs: int, kind: Kind, bias: bool, seed: int = 0) -> PackedLinear:
    weights = PackedWeights(outputs, inputs, kind)
    weights.fill(0, random(outputs, inputs, seed=seed))
    return PackedLinear(weights, random(outputs, seed=seed + 1) if bias else None)


def times(matrix: PackedLinear, x: Tensor) -> Tensor:
    return matrix.weights.multiply(x, matrix.bias)


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("count", [1, 7, 30, 300])  # 300: in two pieces
def test_the_bits_are_those_of_single_calls(kind: Kind, dtype: torch.dtype, wide: bool, last: bool, count: int) -> None:
    o, down = matrix(HIDDEN, HEADS, kind, bias=wide), matrix(HIDDEN, INNER, kind, bias=False, seed=4)
    gate_up, following = (
        matrix(2 * INNER, HIDDEN, kind, bias=wide, seed=2),
        matrix(NEXT, HIDDEN, kind, bias=True, seed=6),
    )
    weights = [random(HIDDEN, seed=seed).to(torch.float32 if wide else dtype) for seed in (8, 9)]
    norm, next_norm = RMSNorm(weights[0], 1e-5, wide), RMSNorm(weights[1], 1e-6, wide)
    x, mixed = random(count, HIDDEN, seed=10).to(dtype), random(count, HEADS, seed=11).to(dtype)

    expected = x.clone()
    normed = rows.add_rms_norm(expected, times(o, mixed), norm.weight, norm.eps)
    gate, up = times(gate_up, normed).split(INNER, dim=1)
    normed = rows.add_rms_norm(expected, times(down, rows.silu_and_mul(gate, up)), next_norm.weight, next_norm.eps)

    y = Between(o, norm, (gate_up, down), next_norm, None if last else following, dtype)(x, mixed)
    assert torch.equal(x, expected)
    assert torch.equal(y, normed if last else times(following, normed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 30, 300])
def test_sandwich_norms_and_gelu(dtype: torch.dtype, count: int) -> None:
    o, down = matrix(HIDDEN, HEADS, "bf16", bias=False), matrix(HIDDEN, INNER, "bf16", bias=False, seed=4)
    gate_up = matrix(2 * INNER, HIDDEN, "bf16", bias=False, seed=2)
    norms = [RMSNorm(random(HIDDEN, seed=seed) + 1, 1e-6, wide=True) for seed in (8, 9, 10, 11)]
    norm, next_norm, o_norm, down_norm = norms
    x, mixed = random(count, HIDDEN, seed=12).to(dtype), random(count, HEADS, seed=13).to(dtype)

    expected = x.clone()
    entered = norm(expected.add_(o_norm(times(o, mixed))))
    after = expected.clone()
    gate, up = times(gate_up, entered).split(INNER, dim=1)
    normed = next_norm(expected.add_(down_norm(times(down, rows.gelu_tanh_and_mul(gate, up)))))

    half = Between(o, norm, None, None, None, dtype, o_norm=o_norm)
    halfway = x.clone()
    assert torch.equal(half(halfway, mixed), entered)
    assert torch.equal(halfway, after)
    whole = Between(
        o, norm, (gate_up, down), next_norm, None, dtype, o_norm=o_norm, down_norm=down_norm, gate="gelu_tanh"
    )
    assert torch.equal(whole(x, mixed), normed)
    assert torch.equal(x, expected)


def test_parts_that_do_not_fit_are_refused() -> None:
    def make(
        down: PackedLinear | None = None, following: PackedLinear | None = None, weight: Tensor | None = None
    ) -> Between:
        norm = RMSNorm(torch.ones(HIDDEN) if weight is None else weight, 1e-5, False)
        o, gate_up = matrix(HIDDEN, HEADS, "bf16", False), matrix(2 * INNER, HIDDEN, "bf16", False)
        down = down or matrix(HIDDEN, INNER, "bf16", False)
        return Between(o, norm, (gate_up, down), norm, following, torch.float32)

    with pytest.raises(ValueError, match="not the matrices of one layer"):
        make(down=matrix(HIDDEN, INNER + 1, "bf16", False))
    with pytest.raises(ValueError, match="not the matrices of one layer"):
        make(following=matrix(NEXT, HIDDEN - 1, "bf16", False))
    o, norm = matrix(HIDDEN, HEADS, "bf16", False), RMSNorm(torch.ones(HIDDEN), 1e-5, False)
    with pytest.raises(ValueError, match="not the matrices of one layer"):
        Between(o, norm, None, norm, matrix(NEXT, HIDDEN, "bf16", False), torch.float32)
    for weight in (torch.ones(HIDDEN + 1), torch.ones(HIDDEN).bfloat16(), torch.ones(2 * HIDDEN)[::2]):
        with pytest.raises(ValueError, match=r"a norm is .* expected torch.float32 \[40\]"):
            make(weight=weight)
    layer, x, mixed = make(), torch.ones(3, HIDDEN), torch.ones(3, HEADS)
    for wrong in ((x[:2], mixed), (x, mixed[:, 1:]), (x.bfloat16(), mixed), (x, torch.ones(HEADS, 3).T)):
        with pytest.raises(TypeError, match=r"contiguous torch.float32 \[T, 40\] and \[T, 48\] on the CPU are needed"):
            layer(*wrong)
