"""Which implementation multiplies, and that all of them give the same."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvtrove import kernels
from kvtrove.config import ConfigError, EngineConfig
from kvtrove.kernels.linear import Groups
from kvtrove.loading import choose_precision
from kvtrove.models.config_reader import read_spec
from kvtrove.models.layers.embedding import Embedding, PackedEmbedding
from kvtrove.models.layers.linear import Joint, Linear, Part
from kvtrove.models.layers.packed import OneDnnLinear, PackedLinear, pack_int4
from kvtrove.models.loader import load_model
from kvtrove.models.precision import Precision
from kvtrove.models.products import Products, choose
from tests.checkpoints import Checkpoints

MIXED = Precision("bfloat16", "float32")
INT4 = Precision("bfloat16", "float32", "int4")
INT8 = Precision("bfloat16", "float32", "int8")


def parts(*sizes: int, inputs: int, bias: bool = False, dtype: torch.dtype = torch.bfloat16) -> list[Part]:
    """Random parts, the same at every call."""
    generator = torch.Generator().manual_seed(3)

    def tensor(*shape: int) -> Tensor:
        return torch.empty(shape).normal_(generator=generator).to(dtype)

    def part(size: int) -> Part:
        weight, values = tensor(size, inputs), tensor(size)
        return Part(size, lambda: weight, (lambda: values) if bias else None)

    return [part(size) for size in sizes]


def test_parts_in_four_bits_are_kept_as_they_are() -> None:
    """Beside one that comes as numbers: the same product as that of each alone."""
    generator = torch.Generator().manual_seed(1)
    q = torch.randint(0, 16, (6, 70), generator=generator, dtype=torch.uint8)
    scale, minimum = (torch.rand(6, 3, generator=generator).half() for _ in range(2))
    plain, x = parts(5, inputs=70)[0], torch.randn(3, 70, generator=generator)
    group = [Part(6, lambda: Groups(q, scale, minimum)), plain]
    joined = PackedLinear.pack(group, 70, "int4", "auto")(x)
    assert torch.equal(joined[:, :6], pack_int4(q, scale, minimum)(x))
    assert torch.equal(joined[:, 6:], PackedLinear.pack([plain], 70, "int4", "auto")(x))
    wide = scale.float() + 1e-6
    exact = pack_int4(q, wide, minimum, torch.ones(6))
    assert exact.weights.kind == "int4_f32"
    torch.testing.assert_close(
        exact(x), x @ Groups(q, wide, minimum).values().T + 1, rtol=0, atol=1e-2
    )  # x has 15 bits


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
        expected = torch.nn.functional.linear(x.double(), part.tensor().double(), bias)
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
        (Precision.plain("float32"), "cpu", "torch"),
        (Precision.plain("float16"), "cpu", "torch"),
        (Precision.plain("bfloat16"), "cpu", "own"),
        (MIXED, "cpu", "own"),
        (INT8, "cpu", "own"),
        (INT4, "cpu", "own"),
        (Precision.plain("bfloat16"), "cuda", "torch"),
    ],
    ids=str,
)
def test_auto_takes_own_kernels_wherever_they_serve(precision: Precision, device: str, auto: str) -> None:
    assert choose("auto", precision, device) == auto
    assert Products(precision, device).same_in_every_batch == (auto == "own")


def test_what_was_built_is_counted() -> None:
    products = Products(Precision.plain("bfloat16"))
    for _ in range(2):
        products.build(parts(8, 4, inputs=6), 6)
    assert products.summary() == "2 x [12, 6] own"


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
    assert choose_precision(config(directory, weights="int4"), spec) == INT4
    monkeypatch.setattr(kernels, "isa", lambda wanted: "amx")
    assert choose_precision(config(directory), spec) == Precision.plain("bfloat16")


def test_settings_that_contradict_each_other_are_refused(checkpoints: Checkpoints) -> None:
    directory = checkpoints.get("llama")
    with pytest.raises(ConfigError, match="float16 does not go with int8 weights: --dtype auto, float32 or bfloat16"):
        choose_precision(config(directory, dtype="float16", weights="int8"), read_spec(directory))
    with pytest.raises(ConfigError, match="weights: 'int3' is not one of auto, int8, int4"):
        config(directory, weights="int3")
    with pytest.raises(ConfigError, match="linear: 'mkl' is not one of auto, torch, onednn, own"):
        config(directory, linear="mkl")


def test_gemma_in_float16_is_refused(checkpoints: Checkpoints) -> None:
    """Its residual stream passes 65,504; what came out were NaN, and silent padding."""
    directory = checkpoints.get("gemma3")
    with pytest.raises(
        ConfigError, match=r"dtype: activations of Gemma3ForCausalLM pass 65,504.* --dtype bfloat16 or float32"
    ):
        choose_precision(config(directory, dtype="float16"), read_spec(directory))


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_embedding_is_read_from_the_packed_output_matrix(tied: bool, checkpoints: Checkpoints) -> None:
    directory = checkpoints.get("llama", dtype="bfloat16", tie_word_embeddings=tied)
    spec, tokens = read_spec(directory), torch.tensor([0, 7, 299])
    plain = load_model(directory, spec, Products(Precision.plain("float32"), wanted="torch"))
    packed = load_model(directory, spec, Products(MIXED))
    assert isinstance(packed.embedding, PackedEmbedding if tied else Embedding)
    assert torch.equal(packed.embedding(tokens), plain.embedding(tokens))
