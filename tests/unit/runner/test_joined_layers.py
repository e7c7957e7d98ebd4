"""Layers of a step in one call, against the same layers one by one: hidden states and cache, bit for bit."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from kvtrove.attention.cells import CellsBackend
from kvtrove.attention.reference import ReferenceBackend
from kvtrove.kernels.attention import AttentionKernel, PagedShape, PagedSide, paged_batch, paged_layer
from kvtrove.kernels.between import Between
from kvtrove.kernels.decoder import CacheOf, DecoderKernel, LayerCall
from kvtrove.kernels.linear import PackedWeights
from kvtrove.kv.arena import Arena
from kvtrove.kv.cells import write_counts
from kvtrove.kv.formats.dense import dense
from kvtrove.kv.formats.fp8 import Fp8
from kvtrove.kv.formats.int8 import int8
from kvtrove.kv.recipe import recipe
from kvtrove.kv.spec import KVFormat
from kvtrove.loading import choose_backends
from kvtrove.models.cache import cache_spec
from kvtrove.models.config_reader import read_spec
from kvtrove.models.decoder import Model
from kvtrove.models.layers.linear import Linear, Weights
from kvtrove.models.layers.mlp import MLP
from kvtrove.models.layers.norm import RMSNorm
from kvtrove.models.layers.packed import PackedLinear
from kvtrove.models.loader import load_model
from kvtrove.models.precision import Precision
from kvtrove.models.products import Products
from kvtrove.models.spec import ModelSpec, RopeSpec
from kvtrove.runner.model_runner import ModelRunner, attention_layers
from kvtrove.scheduler.output import ScheduledSequence, SchedulerOutput
from tests.checkpoints import Checkpoints
from tests.specs import layer_spec, numbered

BLOCK, NUM_BLOCKS = 16, 26
TABLES = np.arange(5, dtype=np.int32), np.arange(5, NUM_BLOCKS, dtype=np.int32)
"""Blocks of two sequences in each group of layers."""
STEPS = [{0: 40, 1: 7}, {0: 1, 1: 300}, {0: 1, 1: 1}]
"""Tokens that each sequence computes, step after step: prompts, a long piece beside a decode, decodes."""


def runner_of(model: Model, formats: KVFormat | Sequence[KVFormat]) -> ModelRunner:
    """formats: of all layers, or of each; the reference takes those that have no kernel."""
    exact = cache_spec(model.spec, "bfloat16", BLOCK)
    each = [formats] * len(exact.layers) if isinstance(formats, KVFormat) else formats
    layers = tuple(replace(layer, format=format) for layer, format in zip(exact.layers, each, strict=True))
    cache = replace(exact, layers=layers)
    arena = Arena(cache, NUM_BLOCKS * len(cache.groups))
    backends = choose_backends("auto", tuple(attention_layers(model, cache, arena)), "cpu")
    return ModelRunner(model, cache, arena, backends, str)


def run_steps(runner: ModelRunner, packed: int = 0) -> list[Tensor]:
    """Hidden states of every step. packed: rows with which sequence 0 begins."""
    done, hidden = {0: packed * BLOCK, 1: 0}, []
    for step in STEPS:
        sequences = []
        for seq, new in step.items():
            tables = tuple(TABLES[seq] + group * NUM_BLOCKS for group in range(len(runner.cache.groups)))
            tokens = array("i", [(7 * seq + 3 * i + done[seq]) % 50 for i in range(new)])
            sequences.append(ScheduledSequence(seq, tokens, done[seq], tables, packed=0 if seq else packed))
            done[seq] += new
        hidden.append(runner.forward(SchedulerOutput(sequences, []))[1])
    return hidden


def check(model: Model, formats: KVFormat | Sequence[KVFormat], expected: list[tuple[int, int]] | None = None) -> None:
    """expected: ranges of layers; None is all layers in one."""
    joined, apart = runner_of(model, formats), runner_of(model, formats)
    assert joined.fused.runs == (expected or [(0, len(model.layers))])
    apart.model = replace(model)
    apart.model.__dict__["calls"] = (None,) * len(model.layers)  # in place of the cached property
    apart.fuse()
    assert apart.fused.runs == []
    for one, other in zip(run_steps(joined), run_steps(apart), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(joined.arena.rows, apart.arena.rows)


def test_heads_with_tables_of_their_own(checkpoints: Checkpoints) -> None:
    """Sequence 0 begins with two packed rows, of which heads have two blocks, one or none."""
    model = load_own(checkpoints, "qwen3")
    exact = cache_spec(model.spec, "bfloat16", BLOCK)
    cache = replace(exact, compactor=recipe("adakv+snapkv=0.25").compactor)
    each, generator = [2, 0, 1, 1], torch.Generator().manual_seed(0)
    counts = [each[cell % 4] for cell in range(cache.cells)]
    assert sum(counts) == cache.cells
    found = []
    for joined in (True, False):
        arena = Arena(cache, NUM_BLOCKS)
        write_counts(arena, 0, counts)
        generator.manual_seed(0)
        arena.rows[1] = torch.randn(cache.block_bytes // 2, generator=generator).bfloat16().view(torch.uint8)
        layers = tuple(attention_layers(model, cache, arena))
        backend = CellsBackend(choose_backends("auto", layers, "cpu")[0])
        runner = ModelRunner(model, cache, arena, [backend] * len(layers), str)
        assert runner.fused.runs == [(0, len(layers))]
        if not joined:
            runner.model = replace(model)
            runner.model.__dict__["calls"] = (None,) * len(layers)
            runner.fuse()
        found.append((*run_steps(runner, packed=2), arena.rows))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("family", ["llama3", "llama_biased", "mistral", "qwen2_sliding", "qwen3", "gemma2", "gemma3"])
def test_one_call_gives_the_bits_of_many(family: str, small: bool, checkpoints: Checkpoints) -> None:
    directory = checkpoints.get(family, dtype="bfloat16")
    products = Products(Precision("bfloat16", "float32", small), wanted="own")
    check(load_model(directory, read_spec(directory), products), int8() if small else dense("bfloat16"))


def load_own(checkpoints: Checkpoints, family: str) -> Model:
    directory = checkpoints.get(family, dtype="bfloat16")
    return load_model(directory, read_spec(directory), Products(Precision.plain("bfloat16"), wanted="own"))


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gemma3"])
def test_hidden_states_in_bf16(family: str, checkpoints: Checkpoints) -> None:
    check(load_own(checkpoints, family), int8())


@pytest.mark.parametrize(
    ("family", "expected"), [("mixtral", [(0, 1), (1, 2), (2, 3)]), ("qwen3_moe", [(0, 1), (1, 3)])]
)
def test_experts_break_the_call_behind_their_own_attention(
    family: str, expected: list[tuple[int, int]], checkpoints: Checkpoints
) -> None:
    check(load_own(checkpoints, family), dense("bfloat16"), expected)


@pytest.mark.parametrize(
    ("foreign", "expected"), [("o", [(0, 1), (2, 4)]), ("qkv", [(0, 1), (2, 4)]), ("mlp", [(0, 2), (2, 4)])]
)
def test_a_foreign_layer_breaks_the_call_where_it_is(
    foreign: str, expected: list[tuple[int, int]], checkpoints: Checkpoints
) -> None:
    model = load_own(checkpoints, "gemma3")
    layers, hidden = [*model.layers], model.spec.hidden_size
    own, mlp, generator = layers[1].attention, layers[1].mlp, torch.Generator().manual_seed(0)

    def linear(outputs: int, inputs: int) -> Linear:
        return Linear(torch.randn(outputs, inputs, generator=generator).bfloat16() * 0.1)

    if foreign == "o":
        layers[1] = replace(layers[1], attention=replace(own, o=linear(hidden, model.spec.num_heads * own.head_dim)))
    elif foreign == "qkv":
        parts = [linear(size, hidden) for size in own.qkv.sizes]
        layers[1] = replace(layers[1], attention=replace(own, qkv=replace(own.qkv, products=parts)))
    else:
        assert isinstance(mlp, MLP)
        layers[1] = replace(layers[1], mlp=replace(mlp, activation="gelu"))
    check(replace(model, layers=tuple(layers)), dense("bfloat16"), expected)


def test_layers_that_read_anothers_storage() -> None:
    full, local = RopeSpec(10_000.0, 8, max_position=512), RopeSpec(500.0, 4, max_position=512)
    layers = numbered(
        layer_spec(1, 8, full),
        layer_spec(1, 8, local, window=20),
        layer_spec(1, 8, local, window=20, source=1),
        layer_spec(1, 8, full, source=0),
    )
    spec = ModelSpec(
        family="llama",
        architecture="LlamaForCausalLM",
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_heads=2,
        layers=layers,
        max_position=512,
        norm_eps=1e-5,
        activation="silu",
        dtype="bfloat16",
        query_scale=8**-0.5,
    )
    generator = torch.Generator().manual_seed(0)
    precision = Precision("bfloat16", "float32")

    def take(name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    weights = Weights(take, build=Products(precision, wanted="own").build, precision=precision)
    model = Model.load(weights, lambda table: take("", (50, 24)), spec, 512, lambda layers: None)
    check(model, dense("float32"), [(0, 1), (1, 2), (2, 4)])  # a prompt ends behind the last layer that stores


class Foreign(Fp8):
    """Kernels know the codec that it is made of, and may not assume that it stores the same."""


def test_a_layer_without_a_kernel_breaks_the_run_and_goes_through_the_reference(checkpoints: Checkpoints) -> None:
    """Layer 1 of 4 has a codec of its own. The runs around it give the bits that they give one by one."""
    model = load_own(checkpoints, "gemma3")
    formats = [dense("bfloat16"), KVFormat(Foreign("k"), Foreign("v")), dense("bfloat16"), dense("bfloat16")]
    check(model, formats, [(0, 1), (2, 4)])


def test_the_reference_takes_layers_one_by_one(checkpoints: Checkpoints) -> None:
    directory = checkpoints.get("llama3", dtype="bfloat16")
    products = Products(Precision("bfloat16", "float32"), wanted="own")
    runner = runner_of(load_model(directory, read_spec(directory), products), dense("float32"))
    runner.backends = (ReferenceBackend(),) * len(runner.backends)
    runner.fuse()
    assert runner.fused.runs == []
    assert all(torch.isfinite(hidden).all() for hidden in run_steps(runner))


def one_layer(q_norm: RMSNorm | None = None, heads: int = 2) -> DecoderKernel:
    hidden, inner, dim = 24, 40, 8

    def matrix(outputs: int, inputs: int) -> PackedLinear:
        return PackedLinear(PackedWeights(outputs, inputs))

    norm = RMSNorm(torch.ones(hidden), 1e-5)
    between = Between(
        matrix(hidden, heads * dim), norm, (matrix(2 * inner, hidden), matrix(hidden, inner)), norm, None, torch.float32
    )
    k, v = (PagedSide("float32", False, dim, torch.zeros(2, 1, BLOCK, dim)) for _ in range(2))
    layer = paged_layer(k, v, PagedShape(2, 1, BLOCK, 1.0))
    return DecoderKernel(AttentionKernel(), [CacheOf(layer, 0)], [LayerCall(between, 0, True, q_norm)])


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="layer 0 does not follow from what is before"):
        one_layer(heads=3)
    with pytest.raises(ValueError, match=r"a norm is torch.float32 \[9\], expected torch.float32 \[8\]"):
        one_layer(RMSNorm(torch.ones(9), 1e-5))


def test_arrays_that_do_not_fit_are_refused() -> None:
    kernel = one_layer(RMSNorm(torch.ones(8), 1e-5))
    table, slots = np.zeros((1, 1), dtype=np.int32), np.array([0, 1])
    batch = paged_batch([0, 2], [0], table, slots)
    x, projected, turn = torch.ones(2, 24), torch.ones(2, 32), torch.ones(2, 1, 4)
    assert kernel(x.clone(), projected.clone(), [batch], [(turn, turn)]).shape == (2, 24)
    for wrong in ((x[:1], projected), (x, projected[:, :31]), (x.bfloat16(), projected), (x, torch.ones(32, 2).T)):
        with pytest.raises(TypeError, match=r"contiguous torch.float32 \[T, 24\] and \[T, 32\] on the CPU are needed"):
            kernel(*wrong, [batch], [(turn, turn)])
    wide = torch.ones(2, 1, 5)
    with pytest.raises(TypeError, match=r"cos, sin: contiguous \[2, 1, up to 4\]"):
        kernel(x, projected, [batch], [(wide, wide)])
    for batches, turns in (([], [(turn, turn)]), ([batch], [])):
        with pytest.raises(ValueError, match="names a batch or a rotation that the step does not have"):
            kernel(x, projected, batches, turns)
    missing = paged_batch([0, 2], [0], table - 1, slots)
    with pytest.raises(IndexError, match=r"block_table\[0, 0\] is -1"):
        kernel(x, projected, [missing], [(turn, turn)])
