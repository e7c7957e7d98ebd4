"""Formats that encode whole blocks on CPU kernels: the answers are those of the reference, on every level."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from kvtrove import kernels
from kvtrove.attention.backend import AttentionBackend, AttentionBatch, GroupTables
from kvtrove.attention.cpu import CpuBackend
from kvtrove.attention.reference import ReferenceBackend
from kvtrove.evaluate.calibrate import rotation, write
from kvtrove.kv.arena import Arena
from kvtrove.kv.formats.dense import dense
from kvtrove.kv.recipe import recipe
from kvtrove.kv.retention import ChunkedLocal, Full, Retention, SinksAndWindow, SlidingWindow
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.models.layers.rope import RotaryEmbedding
from tests.steps import attention_layer
from tests.unit.attention.tolerances import tolerance

LEVELS = ("portable", "avx2", "avx512", "amx")
HERE = LEVELS[: LEVELS.index(kernels.isa()) + 1]
HEADS, KV_HEADS, BLOCK = 6, 2, 32
STEPS = [[(0, 40), (0, 300), (0, 32)], [(40, 1), (300, 30), (32, 1)], [(41, 25), (330, 1), (33, 1)]]
"""For each of three sequences, computed and new tokens."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Head dimension -> a calibration, with a rotation of its own for each head of values."""
    found = {}
    for dim in (32, 64, 96):
        torch.manual_seed(dim)
        found[dim] = str(tmp_path_factory.mktemp("sealed") / "any.safetensors")
        moments = [x @ x.T for x in torch.randn(1 + KV_HEADS, dim, dim).double()]
        write({"k.0": rotation(moments[0]), "v.0": torch.stack([*map(rotation, moments[1:])])}, found[dim])
    return found


def answers(
    words: str, backend: AttentionBackend, dim: int, rule: Retention, dtype: str = "float32", rope: bool = False
) -> Tensor:
    """Of all steps, over an arena that is NaN wherever nothing was written."""
    torch.manual_seed(1)
    spec = recipe(words)(KVCacheSpec((LayerKV(0, KV_HEADS, dim, dim, dense(dtype), rule),), BLOCK, dtype))
    arena = Arena(spec, 24 * len(spec.groups), num_seats=3)
    arena.rows.fill_(0xFF), arena.seats.fill_(0xFF)
    layer = attention_layer(spec, arena, spec.layers[0], HEADS)
    table = torch.full((3, 12), -1, dtype=torch.int32)
    table[1], table[0, :3], table[2, :3] = torch.arange(12), torch.tensor([14, 12, 13]), torch.tensor([20, 22, 17])
    found = []
    for step in STEPS:
        ends = [0, *torch.tensor([new for _, new in step]).cumsum(0).tolist()]
        positions = [range(start, start + new) for start, new in step]
        slots = [int(table[s, p // BLOCK]) * BLOCK + p % BLOCK for s, span in enumerate(positions) for p in span]
        completed = [(s, b) for s, (at, new) in enumerate(step) for b in range(at // BLOCK, (at + new) // BLOCK)]
        tables = tuple(
            GroupTables(torch.tensor(slots) + 24 * BLOCK * i, torch.where(table < 0, -1, table + 24 * i))
            for i in range(len(spec.groups))
        )
        plan = backend.plan(AttentionBatch(ends, [at for at, _ in step], tables, [0, 1, 2], completed))
        q = torch.randn(ends[-1], HEADS, dim).to(getattr(torch, dtype))
        k, v = torch.randn(2, ends[-1], KV_HEADS, dim).to(getattr(torch, dtype))
        at = torch.tensor([p for span in positions for p in span])
        turn = RotaryEmbedding(100.0 ** -(torch.arange(0, dim, 2) / dim)).at(at, q.dtype) if rope else None
        found.append(backend.run(q, k, v, layer, plan, turn))
    return torch.cat(found).float()


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize(
    ("words", "stored"),
    [
        ("kivi=2", ("fp32", "fp32")),
        ("kivi=4", ("fp32", "int4")),
        ("oscar=FILE", ("fp32", "fp32")),
        ("k=kivi=4+v=int8", ("fp32", "int8")),
        ("k=int4r+v=oscar=FILE", ("int4r", "fp32")),
    ],
)
def test_answers_are_those_of_the_reference(
    isa: str, words: str, stored: tuple[str, str], files: dict[int, str]
) -> None:
    """Two bits of a vector of 96 fill no lanes, so that a lower level takes them."""
    for dim in (64, 96):
        expected, got = (
            answers(words.replace("FILE", files[dim]), backend, dim, Full())
            for backend in (ReferenceBackend(), CpuBackend(isa, 2))
        )
        bound = tolerance(*stored, isa, 5.0)  # no value is larger, nor is one of two bits, whose grid ends before it
        assert (got - expected).abs().max() <= bound


@pytest.mark.parametrize("rule", [SlidingWindow(50), SinksAndWindow(3, 40), ChunkedLocal(64)], ids=str)
def test_rules_that_leave_the_own_block_whole(rule: Retention) -> None:
    expected, got = (answers("kivi=2", backend, 32, rule) for backend in (ReferenceBackend(), CpuBackend()))
    assert (got - expected).abs().max() <= tolerance("fp32", "fp32", "amx", 5.0)


def test_bf16_is_rounded_once() -> None:
    """Answers below 4 of 8 bits: half a step is 2^-7."""
    expected, got = (answers("kivi=4", b, 64, Full(), "bfloat16") for b in (ReferenceBackend(), CpuBackend()))
    assert (got - expected).abs().max() <= 2.0**-7


@pytest.mark.parametrize("rule", [SlidingWindow(31), SinksAndWindow(3, 20), ChunkedLocal(48)], ids=str)
def test_rules_that_cut_the_own_block_are_refused(rule: Retention) -> None:
    with pytest.raises(ValueError, match=re.escape(f"layer 0: {rule.id} cuts through a token's own block of 32")):
        answers("kivi=2", CpuBackend(), 32, rule)
