"""Which blocks a query reads: against the formula of the paper, spelled out; and all of them is all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kvtrove import kernels
from kvtrove.attention.backend import AttentionBackend, AttentionBatch, AttentionLayer, GroupTables
from kvtrove.attention.cpu import CpuBackend
from kvtrove.attention.reference import ReferenceBackend
from kvtrove.attention.select import chosen
from kvtrove.evaluate.calibrate import write
from kvtrove.kv.arena import Arena
from kvtrove.kv.formats.dense import dense
from kvtrove.kv.recipe import recipe
from kvtrove.kv.selection.quest import BOUNDS
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from tests.steps import attention_layer

BLOCK, HEADS, KV_HEADS, DIM, LENGTH = 16, 4, 2, 32, 150
SHARED = HEADS // KV_HEADS
REFERENCE = ReferenceBackend(max_scores=4000)
BACKENDS: list[AttentionBackend] = [REFERENCE]
if kernels.available():  # the portable level, and the widest that this machine has
    BACKENDS += [CpuBackend("portable"), CpuBackend()]


def layer_of(words: str) -> AttentionLayer:
    cache = recipe(words)(KVCacheSpec((LayerKV(0, KV_HEADS, DIM, DIM, dense("float32")),), BLOCK))
    return attention_layer(cache, Arena(cache, 12), cache.layers[0], HEADS)


def attend(
    layer: AttentionLayer,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    backend: AttentionBackend = REFERENCE,
) -> torch.Tensor:
    """All tokens in one step; blocks lie in rows 11, 10, ..."""
    table = torch.arange(11, 11 - -(-LENGTH // BLOCK), -1, dtype=torch.int32)
    positions = torch.arange(LENGTH)
    slots = table[positions // BLOCK].long() * BLOCK + positions % BLOCK
    completed = [(0, block) for block in range(LENGTH // BLOCK)]
    batch = AttentionBatch([0, LENGTH], [0], (GroupTables(slots, table[None]),), [0], completed)
    return backend.run(q, k, v, layer, backend.plan(batch))


def random() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, and keys and values that bfloat16 holds, as bounds are then exact."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(LENGTH, heads, DIM, generator=generator) for heads in (HEADS, KV_HEADS, KV_HEADS))
    return q, k.bfloat16().float(), v.bfloat16().float()


def check(found: torch.Tensor, promise: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]) -> None:
    """Of three blocks: attention over a query's own and over the two with the largest promise.

    promise: of queries [shared, dim] and keys [blocks, BLOCK, dim] of a kv head, float64 [blocks].
    """
    q, k, v = (x.double() for x in random())
    for p in range(5, LENGTH, 12):
        own = p // BLOCK
        for head in range(HEADS):
            kv_head = head // SHARED
            group = q[p, kv_head * SHARED : (kv_head + 1) * SHARED]
            scores = promise(group, k[: own * BLOCK, kv_head].view(own, BLOCK, DIM), kv_head)
            best = scores.argsort(descending=True)[:2].tolist()
            read = [i for block in (*best, own) for i in range(block * BLOCK, (block + 1) * BLOCK) if i <= p]
            weights = (k[read, kv_head] @ q[p, head] / DIM**0.5).softmax(0)
            # float32 sums of 48 products
            torch.testing.assert_close(found[p, head].double(), weights @ v[read, kv_head], atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_quest_reads_the_blocks_whose_bounds_promise_most(backend: AttentionBackend) -> None:
    def promise(group: torch.Tensor, keys: torch.Tensor, kv_head: int) -> torch.Tensor:
        low, high = keys.amin(1, keepdim=True), keys.amax(1, keepdim=True)
        return torch.maximum(group * low, group * high).sum(-1).amax(1)

    layer = layer_of("layers=0:quest=48")
    assert backend.reasons_against(layer, "cpu") == []
    check(attend(layer, *random(), backend), promise)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_budget_of_everything_is_dense_attention_bit_for_bit(backend: AttentionBackend) -> None:
    q, k, v = random()
    every, dense = (attend(layer_of(words), q, k, v, backend) for words in ("layers=0:quest=160", "auto"))
    assert torch.equal(every, dense)


@pytest.mark.parametrize("words", ["auto", "fp16", "fp8", "int8", "int4", "int4r"])
def test_bounds_are_those_of_keys_as_they_are_read(words: str) -> None:
    """By each backend the same bits."""
    q, k, v = random()
    bounds = []
    for backend in BACKENDS:
        layer = layer_of(f"layers=0:quest=48+{words}" if words != "auto" else "layers=0:quest=48")
        attend(layer, q, k, v, backend)
        rows = torch.arange(11, 11 - LENGTH // BLOCK, -1)
        bounds.append(layer.view[BOUNDS][rows])
    assert all(torch.equal(one, bounds[0]) for one in bounds)
    stored, _ = layer.format.decode(layer.view, torch.tensor([11, 10]), DIM)
    blocks = stored.float().view(2, BLOCK, KV_HEADS, DIM)
    low, high = layer.view[BOUNDS][[11, 10]].float().unbind(2)
    assert (low <= blocks.amin(1)).all()
    assert (high >= blocks.amax(1)).all()
    torch.testing.assert_close(low, blocks.amin(1), rtol=2**-7, atol=0)  # bfloat16 has 8 bits
    torch.testing.assert_close(high, blocks.amax(1), rtol=2**-7, atol=0)
    rows, places = torch.tensor([[11, 10, 0]]), torch.tensor([[0, 1, 1 << 30]])
    read = chosen(q[None, :1], rows, places, torch.tensor([[1]]), layer)
    assert read[..., 1].all(), "its own"
    assert not read[..., 2].any(), "padding"


@pytest.mark.parametrize("backend", BACKENDS)
def test_double_sparsity_reads_the_blocks_of_the_best_keys_in_few_channels(
    backend: AttentionBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks instead of the paper's tokens; three of them whatever the part."""
    monkeypatch.setattr("kvtrove.kv.selection.double_sparsity.LEAST_TOKENS", 3 * BLOCK)
    matter = torch.rand(KV_HEADS, DIM, generator=torch.Generator().manual_seed(1))
    write({"k.0.channels": matter}, str(tmp_path / "c"))

    def promise(group: torch.Tensor, keys: torch.Tensor, kv_head: int) -> torch.Tensor:
        channels = matter[kv_head].argsort(descending=True)[:4]
        return (keys[..., channels] @ group[:, channels].T).amax((1, 2))

    layer = layer_of(f"layers=0:doublesparsity=1/16@{tmp_path / 'c'}")
    assert backend.reasons_against(layer, "cpu") == []
    check(attend(layer, *random(), backend), promise)
