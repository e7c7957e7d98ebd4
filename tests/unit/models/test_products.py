"""Which implementation multiplies, and that all of them give the same."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvtrove import kernels
from kvtrove.config import ConfigError, EngineConfig
from kvtrove.loading import choose_precision
from kvtrove.models.config_reader import read_spec
from kvtrove.models.layers.embedding import Embedding, PackedEmbedding
from kvtrove.models.layers.linear import Joint, Linear, Part
from kvtrove.models.layers.packed import OneDnnLinear, PackedLinear
from kvtrove.models.loader import load_model
from kvtrove.models.precision import Precision
from kvtrove.models.products import Products, candidates, fastest
from tests.checkpoints import Checkpoints

MIXED = Precision("bfloat16", "float32")
INT8 = Precision("bfloat16", "float32", int8=True)


def parts(*sizes: int, inputs: int, bias: bool = False, dtype: torch.dtype = torch.bfloat16) -> list[Part]:
    """Random parts, the same at every call."""
    generator = torch.Generator().manual_seed(3)

    def tensor(*shape: int) -> Tensor:
        return torch.empty(shape).normal_(generator=generator).to(dtype)

    def part(size: int) -> Part:
        weight, values = tensor(size, inputs), tensor(size)
        return Part(size, lambda: weight, (lambda: values) if bias else None)

    return [part(size) for size in sizes]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("wanted", ["torch", "onednn"])
def test_torch_and_onednn_keep_parts_apart(wanted: str, bias: bool) -> None:
    group = parts(5, 3, inputs=7, bias=bias, dtype=torch.float32)
    products = Products(Precision.plain("float32"), wanted=wanted).build(group, 7)
    assert len(products) == 2
    assert {type(product) for product in products} == {Linear if wanted == "torch" else OneDnnLinear}
    check(products, group, torch.float32)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activations", ["float32", "bfloat16"])
def test_own_products_join_parts(activations: str, bias: bool) -> None:
    group = parts(5, 3, 20, inputs=7, bias=bias)
    products = Products(Precision("bfloat16", activations), wanted="own").build(group, 7)
    assert len(products) == 1
    check(products, group, getattr(torch, activations))


def check(products: Sequence, group: list[Part], dtype: torch.dtype) -> None:
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    joint = Joint(products, tuple(part.outputs for part in group))
    for y, part in zip(joint(x), group, strict=True):
        bias = part.bias().double() if part.bias else None
        expected = torch.nn.functional.linear(x.double(), part.weight().double(), bias)
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), expected, rtol=2**-8 if dtype == torch.bfloat16 else 0, atol=1e-5)


def test_parts_are_read_one_after_the_other() -> None:
    """While a part is read, the one before it is gone: memory is that of the packed weights and one part."""
    alive: list[int] = []

    class Counted(torch.Tensor):
        def __del__(self) -> None:
            alive.pop()

    def weight() -> Tensor:
        alive.append(1)
        assert len(alive) == 1
        return torch.zeros(4, 6).as_subclass(Counted)

    PackedLinear.pack([Part(4, weight)] * 3, 6, "int8", "auto")
    assert not alive


@pytest.mark.parametrize(
    ("precision", "device", "auto"),
    [
        (Precision.plain("float32"), "cpu", ("torch",)),
        (Precision.plain("float16"), "cpu", ("torch",)),
        (Precision.plain("bfloat16"), "cpu", ("torch", "onednn", "own")),
        (MIXED, "cpu", ("own",)),
        (INT8, "cpu", ("own",)),
        (Precision.plain("bfloat16"), "cuda", ("torch",)),
    ],
    ids=str,
)
def test_auto_chooses_among_what_serves_the_numbers(precision: Precision, device: str, auto: tuple[str, ...]) -> None:
    assert candidates("auto", precision, device) == auto


@pytest.mark.parametrize(
    ("wanted", "precision", "device", "advice"),
    [
        ("own", Precision.plain("float32"), "cpu", "auto or torch or onednn can; own needs --dtype bfloat16 or"),
        ("torch", MIXED, "cpu", "auto or own can"),
        ("torch", INT8, "cpu", "auto or own can"),
        ("onednn", Precision.plain("float16"), "cpu", "auto or torch can"),
        ("own", Precision.plain("bfloat16"), "cuda", "auto or torch can"),
    ],
)
def test_what_cannot_serve_is_refused_with_what_can(
    wanted: str, precision: Precision, device: str, advice: str
) -> None:
    with pytest.raises(ConfigError, match=rf"linear: '{wanted}' cannot serve {precision} on {device}; {advice}"):
        Products(precision, device, wanted)


class Clock:
    """Every round of products takes the next of `rounds` seconds."""

    def __init__(self, rounds: list[float]) -> None:
        self.now, self.rounds, self.calls = 0.0, iter(rounds), itertools.count()

    def __call__(self) -> float:
        if next(self.calls) % 2:
            self.now += next(self.rounds)
        return self.now


def test_large_shapes_are_measured_once_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """torch 4 s, then own 1 s a round; oneDNN knows this processor or not."""
    clock = Clock([4.0] * 9 + [1.0] * 100)
    products = Products(Precision.plain("bfloat16"), clock=clock)
    products.candidates = ("torch", "own")
    wide = parts(1024, inputs=1024)
    with caplog.at_level(logging.INFO, logger="kvtrove.models.products"):
        for _ in range(2):
            assert isinstance(products.build(wide, 1024)[0], PackedLinear)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("linear [1024, 1024]: own; torch ")
    assert products.summary() == "2 x [1024, 1024] own"


def test_a_hopeless_candidate_is_timed_at_one_row_only(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock([1.0] * 9 + [9.0] * 3)
    products = Products(Precision.plain("bfloat16"), clock=clock)
    products.candidates = ("own", "torch")
    with caplog.at_level(logging.INFO, logger="kvtrove.models.products"):
        assert isinstance(products.build(parts(1024, inputs=1024), 1024)[0], PackedLinear)
    assert caplog.messages[0].endswith("ms at 1 rows")


@pytest.mark.parametrize(("long", "best"), [([0.08, 0.09, 0.02, 0.01], "own"), ([0.01, 0.02, 0.09, 0.08], "torch")])
def test_a_long_prompt_decides_between_equals(long: list[float], best: str, caplog: pytest.LogCaptureFixture) -> None:
    """16 products of a millisecond in a round, then two of one product each."""
    products = Products(Precision.plain("bfloat16"), clock=Clock([0.016] * 18 + long))
    products.candidates = ("torch", "own")
    with caplog.at_level(logging.INFO, logger="kvtrove.models.products"):
        products.build(parts(1024, inputs=1024), 1024)
    assert caplog.messages == [
        f"linear [1024, 1024]: {best}; torch 1.00, 1.00, 1.00, {1e3 * min(long[:2]):.2f} ms at 1, 8, 64, 512 rows; "
        f"own 1.00, 1.00, 1.00, {1e3 * min(long[2:]):.2f} ms at 1, 8, 64, 512 rows"
    ]


@pytest.mark.parametrize(
    "rounds",
    [[0.016] * 15 + [0.08] * 3, [0.016] * 6 + [0.3] * 3 + [0.016] * 6 + [0.3] * 3],
    ids=["one is hopeless with many rows", "both would take long"],
)
def test_a_long_prompt_is_not_timed_where_it_decides_nothing_or_takes_long(
    rounds: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    products = Products(Precision.plain("bfloat16"), clock=Clock(rounds))
    products.candidates = ("torch", "own")
    with caplog.at_level(logging.INFO, logger="kvtrove.models.products"):
        products.build(parts(1024, inputs=1024), 1024)
    assert caplog.messages[0].startswith("linear [1024, 1024]: torch; ")
    assert caplog.messages[0].endswith("ms at 1, 8, 64 rows")


def test_small_shapes_are_not_measured() -> None:
    def never() -> float:
        raise AssertionError("timed")

    products = Products(Precision.plain("bfloat16"), clock=never)
    assert isinstance(products.build(parts(8, inputs=8), 8)[0], Linear)


def test_every_number_of_rows_counts_alike() -> None:
    assert fastest({"a": (1.0, 1.0, 9.0), "b": (2.0, 2.0, 2.0)}) == "b"
    assert fastest({"a": (), "b": (1.0,), "c": (5.0, 5.0, 5.0)}) == "c"


def test_onednn_does_not_hold_a_tied_matrix_twice() -> None:
    products = Products(Precision.plain("float32"), wanted="onednn")
    assert isinstance(products.build(parts(8, inputs=8, dtype=torch.float32), 8, True)[0], Linear)


def config(directory: Path, **settings: str) -> EngineConfig:
    return EngineConfig(str(directory), device="cpu", **settings)  # type: ignore[arg-type]


def test_auto_computes_bf16_checkpoints_in_float32_where_bf16_is_slow(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = checkpoints.get("llama", dtype="bfloat16")
    spec = read_spec(directory)
    monkeypatch.setattr(kernels, "isa", lambda wanted: "avx2")
    with caplog.at_level(logging.INFO, logger="kvtrove.loading"):
        assert choose_precision(config(directory), spec) == MIXED
    assert "no bf16 instructions" in caplog.text
    assert choose_precision(config(directory, dtype="bfloat16"), spec) == Precision.plain("bfloat16")
    assert choose_precision(config(directory, linear="torch"), spec) == Precision.plain("bfloat16")
    assert choose_precision(config(directory, dtype="float32"), spec) == Precision.plain("float32")
    assert choose_precision(config(directory, weights="int8"), spec) == INT8
    monkeypatch.setattr(kernels, "isa", lambda wanted: "amx")
    assert choose_precision(config(directory), spec) == Precision.plain("bfloat16")


def test_settings_that_contradict_each_other_are_refused(checkpoints: Checkpoints) -> None:
    directory = checkpoints.get("llama")
    with pytest.raises(ConfigError, match="float16 does not go with int8 weights: --dtype auto, float32 or bfloat16"):
        choose_precision(config(directory, dtype="float16", weights="int8"), read_spec(directory))
    with pytest.raises(ConfigError, match="weights: 'int4' is not one of auto, int8"):
        config(directory, weights="int4")
    with pytest.raises(ConfigError, match="linear: 'mkl' is not one of auto, torch, onednn, own"):
        config(directory, linear="mkl")


def test_gemma_in_float16_is_refused(checkpoints: Checkpoints) -> None:
    """Its residual stream passes 65,504; what came out were NaN, and silent padding."""
    directory = checkpoints.get("gemma3")
    with pytest.raises(ConfigError, match=r"dtype: activations of gemma3 pass 65,504.* --dtype bfloat16 or float32"):
        choose_precision(config(directory, dtype="float16"), read_spec(directory))


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_embedding_is_read_from_the_packed_output_matrix(tied: bool, checkpoints: Checkpoints) -> None:
    directory = checkpoints.get("llama", dtype="bfloat16", tie_word_embeddings=tied)
    spec, tokens = read_spec(directory), torch.tensor([0, 7, 299])
    plain = load_model(directory, spec, Products(Precision.plain("float32"), wanted="torch"))
    packed = load_model(directory, spec, Products(MIXED))
    assert isinstance(packed.embedding, PackedEmbedding if tied else Embedding)
    assert torch.equal(packed.embedding(tokens), plain.embedding(tokens))
