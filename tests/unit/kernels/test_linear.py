"""PackedWeights against float64, at every instruction set of this machine."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kvtrove import kernels
from kvtrove.kernels.linear import E2M1, GROUP, Groups, Kind, PackedWeights

LEVELS = ["portable", "avx2", "avx512", "amx"]
ISAS = LEVELS[: LEVELS.index(kernels.isa()) + 1]
each_isa = pytest.mark.parametrize("isa", ISAS)
each_kind = pytest.mark.parametrize("kind", ["bf16", "int8", "int4"])
# Rows around what is summed at once, stretches and blocks of inputs, panels of outputs: one less, equal, one more.
ROWS = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 24, 25, 33, 49, 97])
INPUTS = st.one_of(st.integers(1, 40), st.sampled_from([127, 129, 255, 256, 257, 511, 513, 1025]))
OUTPUTS = st.one_of(st.integers(1, 70), st.sampled_from([128, 511, 513]))


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(weight: Tensor, kind: Kind, isa: str) -> PackedWeights:
    weights = PackedWeights(*weight.shape, kind, isa)
    weights.fill(0, weight)
    return weights


def stored(weights: PackedWeights) -> Tensor:
    """What the packed weights stand for: float32 [outputs, inputs]."""
    out = torch.full((weights.outputs, weights.inputs), float("nan"))
    return weights.gather(torch.arange(weights.outputs), out)


def reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())


def bound(x: Tensor, weight: Tensor, bias: Tensor | None, kind: Kind, isa: str) -> Tensor:
    """What a chain of float32 multiply-adds may be off: inputs + 2 roundings of sums below that of magnitudes.

    int8 and int4 also round every x to a whole number of steps, of which 32767 (127 * 128 on tiles, and with int4
    everywhere) are its stretch's largest. The two terms of an int4 group may cancel each other: each is up to twice the
    group's largest number.
    """
    spread = weight.abs()
    if kind == "int4":
        spread = spread + torch.cat(
            [2 * part.abs().amax(1, keepdim=True).expand_as(part) for part in spread.split(GROUP, 1)], 1
        )
    magnitudes = reference(x.abs(), spread, None if bias is None else bias.abs())
    off = (weight.shape[1] + 2) * 2.0**-24 * magnitudes + 1e-30
    if kind != "bf16":
        tiles = isa == "amx" or kind == "int4"
        most = 127 * 128 if tiles else 32767
        stretches = x.abs().double().split(256 if tiles else 128, dim=1)
        steps = torch.cat([one.amax(1, keepdim=True).expand_as(one) / most for one in stretches], dim=1)
        off += reference(steps / 2, weight.abs(), None) * 1.001
    return off


@each_isa
@each_kind
@given(
    rows=ROWS, inputs=INPUTS, outputs=OUTPUTS, with_bias=st.booleans(), dtype=st.sampled_from(["float32", "bfloat16"])
)
def test_products_equal_float64(
    isa: str, kind: Kind, rows: int, inputs: int, outputs: int, with_bias: bool, dtype: str
) -> None:
    weights = packed(random(outputs, inputs, seed=1), kind, isa)
    x = random(rows, inputs, seed=2)
    x[:, ::37] *= 300  # outliers, as models have them
    x = x.to(getattr(torch, dtype))
    bias = random(outputs, seed=3) if with_bias else None
    weight = stored(weights)
    y = weights.multiply(x, bias)
    assert y.dtype == x.dtype
    expected = reference(x, weight, bias)
    rounding = 2.0**-8 * expected.abs() if dtype == "bfloat16" else 0.0
    error = (y.double() - expected).abs()
    assert bool((error <= bound(x, weight, bias, kind, isa) + rounding).all()), float(error.max())


@each_isa
@each_kind
@pytest.mark.parametrize("inputs", [5, 300, 1400])  # 1400: several blocks of inputs on tiles
def test_a_row_gives_the_same_bits_in_every_batch_and_with_any_number_of_threads(
    isa: str, kind: Kind, inputs: int
) -> None:
    weights = packed(random(200, inputs), kind, isa)
    x, bias = random(100, inputs, seed=1), random(200, seed=2)
    alone = torch.cat([weights.multiply(x[i : i + 1], bias) for i in range(len(x))])
    threads = kernels.threads()
    try:
        for count in (1, 3):
            kernels.set_threads(count)
            for rows in (2, 3, 5, 6, 7, 11, 13, 32, 49, 100):
                assert torch.equal(weights.multiply(x[:rows], bias), alone[:rows])
    finally:
        kernels.set_threads(threads)


@each_isa
def test_every_level_gives_almost_the_same(isa: str) -> None:
    weight, x = random(40, 300), random(9, 300, seed=1)
    one, other = packed(weight, "bf16", isa).multiply(x), packed(weight, "bf16", "portable").multiply(x)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@each_isa
@each_kind
@pytest.mark.parametrize("rows", [3, 40])
def test_nothing_around_the_arrays_is_read_or_written(isa: str, kind: Kind, rows: int) -> None:
    """x and the biases end where NaN begins; what lies before and behind y stays as it was."""
    weights = packed(random(37, 29), kind, isa)
    room = torch.full((3, rows * 37), float("nan"))
    room[1, : rows * 29] = random(rows * 29, seed=1)
    x = room[1, : rows * 29].view(rows, 29)
    bias = torch.cat([random(37, seed=2), torch.full((20,), float("nan"))])[:37]
    y = weights.multiply(x, bias)
    assert bool(y.isfinite().all())
    out = torch.full((6, 29), 7.0)
    weights.gather(torch.tensor([36, 0]), out[2:4])
    assert [bool((part == 7).any()) for part in out.split(2)] == [True, False, True]
    assert bool((out[[0, 1, 4, 5]] == 7).all())


@each_isa
@each_kind
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_row_stays_alone(isa: str, kind: Kind, value: float) -> None:
    weights = packed(random(20, 300), kind, isa)
    x = random(9, 300)
    x[4, 7] = value
    y = weights.multiply(x)
    assert not bool(y[4].isfinite().any())
    assert bool(y[[0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all())


@each_isa
def test_bf16_weights_are_rounded_to_nearest_even(isa: str) -> None:
    weight = torch.cat([random(9, 33), torch.tensor([[1e38, -0.0, float("inf"), 1e-40] + [2.0**-9 + 1] * 29])])
    assert torch.equal(stored(packed(weight, "bf16", isa)), weight.bfloat16().float())


@each_isa
@given(inputs=st.integers(1, 70), outputs=st.integers(1, 20), spread=st.sampled_from([1e-30, 1e-3, 1.0, 1e20]))
def test_int8_weights_are_off_by_half_a_step_at_most(isa: str, inputs: int, outputs: int, spread: float) -> None:
    weight = random(outputs, inputs) * spread
    weight[0] = 0
    step = weight.abs().amax(-1, keepdim=True).double() / 127
    error = (stored(packed(weight, "int8", isa)).double() - weight.double()).abs()
    assert bool((error <= step * 0.5001).all())
    assert bool((error[0] == 0).all())


@each_isa
@given(inputs=st.integers(1, 100), outputs=st.integers(1, 40), spread=st.sampled_from([1e-3, 1.0, 1e3]))
def test_int4_weights_are_off_by_half_a_step_at_most(isa: str, inputs: int, outputs: int, spread: float) -> None:
    """Squared, over a group: a fitted line may take from one number what it gives the others. The scale and the minimum
    are rounded to float16, by 2^-11 of themselves: 15 times one, once the other."""
    weight = random(outputs, inputs) * spread
    weight[0] = 0
    error = (stored(packed(weight, "int4", isa)).double() - weight.double()).square().split(GROUP, 1)
    for part, off in zip(weight.double().split(GROUP, 1), error, strict=True):
        step = (part.amax(1) - part.amin(1)) / 15
        allowed = step / 2 + 2.0**-11 * (15 * step + part.amin(1).abs()) + 2.0**-24
        assert bool((off.sum(1) <= allowed.square() * part.shape[1]).all())
    assert bool((error[0][0] == 0).all())


def groups(outputs: int, inputs: int, kind: Kind) -> Groups:
    bits = 8 if kind.startswith("int8") else 4
    numbers = torch.randint(
        0, 1 << bits, (outputs, inputs), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    scales, minima = (random(outputs, -(-inputs // GROUP), seed=seed) for seed in (2, 3))
    if not kind.endswith("_f32"):
        scales, minima = scales.half().float(), minima.half().float()
    minima = {"int8_groups": -128 * scales, "int4_symmetric": -8 * scales, "fp4": 0 * scales}.get(kind, minima)
    return Groups(numbers, scales, minima, bits, kind == "fp4")


@each_isa
@pytest.mark.parametrize("kind", ["int4", "int4_f32", "int4_symmetric", "int8_groups", "int8_groups_f32", "fp4"])
@pytest.mark.parametrize("inputs", [32, 300, 896])
def test_groups_are_kept_as_they_are_and_multiplied_with_the_same_bits_at_every_level(
    isa: str, kind: Kind, inputs: int
) -> None:
    source = groups(70, inputs, kind)
    assert source.kind == kind
    weights, portable = PackedWeights(70, inputs, kind, isa), PackedWeights(70, inputs, kind, "portable")
    for one in (weights, portable):
        one.fill_groups(30, Groups(source.numbers[30:], source.scales[30:], source.minima[30:], source.bits))
        one.fill_groups(0, Groups(source.numbers[:30], source.scales[:30], source.minima[:30], source.bits))
    assert torch.equal(stored(weights), source.values())
    for rows in (1, 2, 5, 9, 40, 200):
        x = random(rows, inputs, seed=rows)
        assert torch.equal(weights.multiply(x), portable.multiply(x))
    numbers = torch.tensor(E2M1)[source.numbers.int()] if source.codes else source.numbers
    exact = source.scales.double().repeat_interleave(GROUP, 1)[:, :inputs] * numbers
    exact += source.minima.double().repeat_interleave(GROUP, 1)[:, :inputs]
    off = (weights.multiply(x).double() - x.double() @ exact.T).abs()
    terms = torch.maximum(exact.abs(), source.minima.abs().repeat_interleave(GROUP, 1)[:, :inputs])  # they cancel
    assert bool((off <= bound(x, terms, None, "int4", isa)).all())


@each_isa
def test_bytes_in_groups_are_off_by_half_a_step_at_most(isa: str) -> None:
    weight = random(40, 100)
    weight[0] = 0
    error = (stored(packed(weight, "int8_groups", isa)).double() - weight.double()).abs()
    steps = torch.cat([part.abs().amax(1, keepdim=True).expand_as(part) / 127 for part in weight.split(GROUP, 1)], 1)
    assert bool((error <= steps * (0.5 + 127 * 2.0**-11) + 2.0**-24).all()), "the scale is rounded to float16"


def test_groups_that_the_format_cannot_hold_are_refused() -> None:
    weights, good = PackedWeights(4, 40, "int4"), groups(4, 40, "int4")
    with pytest.raises(ValueError, match="a number is beyond 15"):
        weights.fill_groups(0, Groups(good.numbers + 16, good.scales, good.minima))
    with pytest.raises(ValueError, match="is not a finite float16; weights of _f32 hold float32"):
        weights.fill_groups(0, Groups(good.numbers, good.scales + 1e-5, good.minima))
    with pytest.raises(ValueError, match="a scale or a minimum is not finite"):
        PackedWeights(4, 40, "int4_f32").fill_groups(0, Groups(good.numbers, good.scales, good.minima / 0))
    with pytest.raises(ValueError, match=r"does not fit at output 1 of weights \[4, 40\]"):
        weights.fill_groups(1, good)
    with pytest.raises(ValueError, match="groups have 40 inputs, expected 41"):
        PackedWeights(4, 41, "int4").fill_groups(0, good)
    with pytest.raises(ValueError, match="groups of numbers fill weights in groups only: int4 or int8_groups"):
        PackedWeights(4, 40, "int8").fill_groups(0, good)
    with pytest.raises(ValueError, match=r"scales are torch.float32 \[4, 1\], expected floats \[4, 2\]"):
        Groups(good.numbers, good.scales[:, :1], good.minima)
    with pytest.raises(TypeError, match=r"numbers are torch\.int8, expected uint8"):
        Groups(good.numbers.to(torch.int8), good.scales, good.minima)
    with pytest.raises(
        ValueError, match=r"row 0 of the source holds .* more than 65,504, which groups cannot; use bf16"
    ):
        weights.fill(0, torch.full((1, 40), 1e5))
    with pytest.raises(
        ValueError, match=r"a minimum is not -128 times its scale; int4 and int8_groups_f32 weights hold any"
    ):
        PackedWeights(4, 40, "int8_groups").fill_groups(0, good)


def test_parts_are_filled_one_after_the_other_from_any_dtype() -> None:
    whole = random(50, 12, dtype=torch.float16)
    weights = PackedWeights(50, 12)
    for first, last in ((20, 50), (0, 7), (7, 20)):
        weights.fill(first, whole[first:last])
    assert torch.equal(stored(weights), whole.bfloat16().float())


def test_gather_rounds_to_the_dtype_of_its_target() -> None:
    weights = packed(random(10, 8), "int8", "auto")
    ids = torch.tensor([9, 0, 9])
    wide, narrow = (weights.gather(ids, torch.empty(3, 8, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16))
    assert torch.equal(narrow, wide.bfloat16())
    assert torch.equal(wide[0], wide[2])


def test_memory_is_that_of_the_weights() -> None:
    assert PackedWeights(4864, 896, "bf16").nbytes == 2 * 4864 * 896
    assert PackedWeights(4864, 896, "int8").nbytes == 4864 * (896 + 4)
    assert PackedWeights(4864, 896, "int4").nbytes == 4864 * 896 * 5 / 8
    assert PackedWeights(4864, 896, "int4_f32").nbytes == 4864 * 896 * 6 / 8
    assert PackedWeights(4864, 896, "int4_symmetric").nbytes == 4864 * 896 * 4.5 / 8
    assert PackedWeights(4864, 896, "int8_groups").nbytes == 4864 * 896 * 8.5 / 8
    assert PackedWeights(4864, 896, "int8_groups_f32").nbytes == 4864 * 896 * 10 / 8


def test_no_rows_give_no_rows() -> None:
    assert PackedWeights(4, 3).multiply(torch.empty(0, 3)).shape == (0, 4)
    assert PackedWeights(4, 3).gather(torch.empty(0, dtype=torch.int64), torch.empty(0, 3)).shape == (0, 3)


def test_bad_arguments_are_refused_with_what_is_expected() -> None:
    weights = PackedWeights(4, 3)
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"weights of shape \[0, 3\]: both must be at least 1"):
        PackedWeights(0, 3)
    with pytest.raises(ValueError, match="kind: 'int3' is not one of bf16, int8, int4, int4_f32"):
        PackedWeights(4, 3, "int3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"source of shape \[2, 3\] does not fit at output 3 of weights \[4, 3\]"):
        weights.fill(3, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"source of shape \[2, 2\] does not fit"):
        weights.fill(0, torch.zeros(2, 2))
    with pytest.raises(ValueError, match="source has 1 dimensions"):
        weights.fill(0, torch.zeros(3))
    with pytest.raises(ValueError, match=r"row 1 of the source holds a NaN or an infinity.*use bf16"):
        PackedWeights(4, 3, "int8").fill(0, torch.tensor([[0.0] * 3, [1.0, float("nan"), 0.0]]))
    with pytest.raises(ValueError, match=r"an array is \[2, 4\], expected \[rows, 3\]"):
        weights.multiply(torch.zeros(2, 4))
    with pytest.raises(TypeError, match=r"an array is torch.float64, expected float32 or bfloat16"):
        weights.multiply(x.double())
    with pytest.raises(TypeError, match="an array is on meta"):
        weights.multiply(x.to("meta"))
    for bias in (torch.zeros(3), torch.zeros(4).bfloat16(), torch.zeros(8)[::2]):
        with pytest.raises(ValueError, match=r"bias is .*, expected float32 \[4\]"):
            weights.multiply(x, bias)
    with pytest.raises(IndexError, match=r"ids\[1\] is row 4, but the weights have 4 rows"):
        weights.gather(torch.tensor([0, 4]), torch.empty(2, 3))
    with pytest.raises(TypeError, match=r"ids are torch.int32 \[1\] on cpu, expected int64"):
        weights.gather(torch.tensor([0], dtype=torch.int32), torch.empty(1, 3))
    with pytest.raises(ValueError, match=r"out is \[2, 3\], expected \[1, 3\]"):
        weights.gather(torch.tensor([0]), torch.empty(2, 3))


def test_an_x_with_gaps_is_read_right() -> None:
    weights = packed(random(4, 3), "bf16", "auto")
    x = random(6, 3)
    assert torch.equal(weights.multiply(x[::2]), weights.multiply(x[::2].clone()))
