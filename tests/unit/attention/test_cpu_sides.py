"""Keys in one form beside values in another, against attention in float64 over what their codecs decode."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from kvtrove import kernels
from kvtrove.attention.paged import paged_side
from kvtrove.kernels.attention import (
    AttentionKernel,
    PagedBatch,
    PagedLayer,
    PagedShape,
    PagedSide,
    paged_batch,
    paged_layer,
)
from kvtrove.kv.formats.dense import dense
from kvtrove.kv.formats.words import FORMATS
from kvtrove.kv.spec import LayerKV, Side
from tests.unit.attention.tolerances import tolerance

LEVELS = ("portable", "avx2", "avx512", "amx")
HERE = LEVELS[: LEVELS.index(kernels.isa()) + 1]
FORMS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4r", "int4")
HEADS, KV_HEADS, WINDOW = 6, 2, 150
SEQUENCES = [(0, 20), (300, 1), (37, 3)]  # computed, new


@dataclass
class Stored:
    """One side of a cache: NaN wherever nothing was stored."""

    name: Side
    form: str
    dim: int
    block_size: int
    blocks: int

    def __post_init__(self) -> None:
        self.codec = FORMATS[self.form].make(self.name, "", LayerKV(0, KV_HEADS, self.dim, self.dim, dense("float32")))
        planes = self.codec.planes(KV_HEADS, self.dim, self.block_size)
        self.view = {p.name: torch.full((self.blocks, *p.shape), 77, dtype=getattr(torch, p.dtype)) for p in planes}
        for plane in self.view.values():
            if plane.is_floating_point():
                plane.fill_(math.nan)

    def side(self) -> PagedSide:
        return paged_side(self.codec, self.dim, self.view)

    def decoded(self, blocks: Tensor) -> Tensor:
        """float64 [tokens, kv_heads, dim]."""
        return self.codec.decode(self.view, blocks.long()).double()


@dataclass
class World:
    k: Stored
    v: Stored
    logits: Tensor | None
    table: Tensor

    def layer(self) -> PagedLayer:
        size = self.k.block_size
        return paged_layer(
            self.k.side(),
            self.v.side(),
            PagedShape(HEADS, KV_HEADS, size, 0.3, window=WINDOW, sink_logits=self.logits),
        )

    def slots(self, s: int, positions: range) -> list[int]:
        size = self.k.block_size
        return [int(self.table[s, p // size]) * size + p % size for p in positions]

    def batch(self, spans: list[range]) -> PagedBatch:
        ends = np.cumsum([0, *map(len, spans)]).tolist()
        slots = np.array([slot for s, span in enumerate(spans) for slot in self.slots(s, span)])
        return paged_batch(ends, [span.start for span in spans], self.table.numpy(), slots)

    def expected(self, q: Tensor, spans: list[range]) -> Tensor:
        results, row = [], 0
        for s, span in enumerate(spans):
            keys, values = (side.decoded(self.table[s]) for side in (self.k, self.v))
            for p in span:
                seen = slice(max(0, p - WINDOW + 1), p + 1)
                k, v = (x[seen].repeat_interleave(HEADS // KV_HEADS, 1) for x in (keys, values))
                scores = torch.einsum("hd,nhd->hn", q[row].double(), k) * 0.3
                if self.logits is not None:
                    scores = torch.cat([scores, self.logits[:, None].double()], 1)
                results.append(torch.einsum("hn,nhd->hd", scores.softmax(-1)[:, : len(k)], v))
                row += 1
        return torch.stack(results)


def world(k: str, v: str, k_dim: int, v_dim: int, block_size: int, sinks: bool) -> World:
    torch.manual_seed(k_dim + v_dim)
    totals = [start + new for start, new in SEQUENCES]
    width = -(-max(totals) // block_size)
    table = torch.randperm(width * len(totals)).int().view(len(totals), width)
    blocks = table.numel()
    keys, values = Stored("k", k, k_dim, block_size, blocks), Stored("v", v, v_dim, block_size, blocks)
    return World(keys, values, torch.randn(HEADS) if sinks else None, table)


@pytest.mark.parametrize("k", FORMS)
@pytest.mark.parametrize("v", FORMS)
def test_every_pair_is_attention_over_what_it_decodes(k: str, v: str) -> None:
    small, wide = ((32, 64), (96, 32)) if "int4" in (k, v) else ((24, 16), (48, 80))
    plain = 16 if {k, v} & {"fp8", "int4r", "int4"} else 8  # these are read in tiles alone
    cases = [(isa, 32, (64, 64)) for isa in HERE]
    for isa, block_size, (k_dim, v_dim) in (*cases, (HERE[0], plain, small), (HERE[-1], 16, wide)):
        here, kernel = world(k, v, k_dim, v_dim, block_size, sinks=k != v), AttentionKernel(isa)
        layer, everything = here.layer(), [range(start + new) for start, new in SEQUENCES]
        count = sum(map(len, everything))
        keys, values = torch.randn(count, KV_HEADS, k_dim), torch.randn(count, KV_HEADS, v_dim)
        kernel.store(layer, here.batch(everything), keys, values)
        spans = [range(start, start + new) for start, new in SEQUENCES]
        q = torch.randn(sum(map(len, spans)), HEADS, k_dim)
        out, lse = torch.empty(len(q), HEADS, v_dim), torch.empty(len(q), HEADS)
        kernel.attend(layer, here.batch(spans), q, out, lse)
        assert torch.isfinite(out).all()
        # no key has a norm above 2 sqrt(dim), and a score's terms add up to less than the product of norms
        bound = tolerance(k, v, isa, float(values.abs().max()), scores=0.3 * 4 * k_dim)
        assert (out - here.expected(q, spans)).abs().max() <= bound


@pytest.mark.skipif(HERE[-1] != "amx", reason="this processor has no AMX to hold against AVX-512")
@pytest.mark.parametrize("k", ["int8", "int4r"])
@pytest.mark.parametrize("v", ["int8", "int4r"])
def test_tiles_have_the_bits_of_vectors(k: str, v: str) -> None:
    here = world(k, v, 64, 96, 16, sinks=False)
    layer, everything = here.layer(), [range(start + new) for start, new in SEQUENCES]
    count = sum(map(len, everything))
    keys, values = torch.randn(count, KV_HEADS, 64), torch.randn(count, KV_HEADS, 96)
    AttentionKernel().store(layer, here.batch(everything), keys, values)
    q, outs = torch.randn(count, HEADS, 64), []
    for isa in ("avx512", "amx"):
        outs.append(torch.empty(count, HEADS, 96))
        AttentionKernel(isa).attend(layer, here.batch(everything), q, outs[-1])
    assert torch.equal(*outs)


@pytest.mark.parametrize("isa", HERE)
def test_a_sink_logit_is_counted_once_whatever_the_splits(isa: str) -> None:
    """A long sequence in several splits, with threads that share it: the sum holds the logit once."""
    size, length = 32, 1300
    side = torch.zeros(41, 1, size, 8)
    logits = torch.tensor([2.0, -1.0])
    plain = [PagedSide("float32", False, 8, x) for x in (side, side + 1)]
    layer = paged_layer(*plain, PagedShape(2, 1, size, 1.0, sink_logits=logits))
    batch = paged_batch([0, 1], [length - 1], np.arange(41, dtype=np.int32)[None], np.array([length - 1]))
    for threads in (1, 2):
        out, lse = torch.empty(1, 2, 8), torch.empty(1, 2)
        AttentionKernel(isa, threads).attend(layer, batch, torch.zeros(1, 2, 8), out, lse)
        total = length + logits.double().exp()
        torch.testing.assert_close(lse[0].double(), total.log(), atol=1e-6, rtol=0)
        torch.testing.assert_close(out[0].double(), (length / total)[:, None].expand(2, 8), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("form", "dim"), [("int4r", 24), ("int4r", 64), ("int4r", 80), ("int4", 64), ("fp8", 24)])
def test_kernels_store_what_codecs_encode(form: str, dim: int) -> None:
    """To the bit, whatever the size of numbers."""
    size, tokens = 16, 40
    here = world(form, form, dim, dim, size, sinks=False)
    x, kernel = torch.randn(tokens, KV_HEADS, dim) * torch.logspace(-3, 3, tokens)[:, None, None], AttentionKernel()
    slots = torch.arange(tokens)
    batch = paged_batch([0, tokens], [0], torch.arange(-(-tokens // size)).int().numpy()[None], slots.numpy())
    kernel.store(here.layer(), batch, x, x)
    for side in (here.k, here.v):
        stored = {name: plane.view(torch.uint8).clone() for name, plane in side.view.items()}
        side.codec.encode(x, side.view, slots)
        for name, plane in side.view.items():
            assert torch.equal(plane.view(torch.uint8), stored[name]), name


@pytest.mark.parametrize("isa", HERE)
def test_sealed_blocks_and_the_own_one_are_everything(isa: str) -> None:
    """Two calls, merged: what lies before a query's block, and its block up to itself."""
    size, heads, dim, start, new = 32, 2, 16, 40, 600
    total = start + new
    blocks, kernel = -(-total // size), AttentionKernel(isa, 2)
    k, v = (PagedSide("float32", True, dim, torch.full((blocks, 1, size, dim), math.nan)) for _ in range(2))
    table = torch.randperm(blocks).int()

    def batch(first: int) -> PagedBatch:
        positions = np.arange(first, total)
        slots = table.numpy()[positions // size].astype(np.int64) * size + positions % size
        return paged_batch([0, total - first], [first], table.numpy()[None], slots)

    def layer(**reach: int) -> PagedLayer:
        return paged_layer(k, v, PagedShape(heads, 1, size, 0.3, **reach))  # type: ignore[arg-type]

    kernel.store(layer(), batch(0), torch.randn(total, 1, dim), torch.randn(total, 1, dim))
    for first in (start, 0, total - 1):
        count = total - first
        q, own, sealed, whole = torch.randn(4, count, heads, dim)
        own_lse, sealed_lse, merged_lse, whole_lse = torch.empty(4, count, heads)
        kernel.attend(layer(chunk=size), batch(first), q, own, own_lse)
        kernel.attend(layer(sealed=size), batch(first), q, sealed, sealed_lse)
        kernel.attend(layer(), batch(first), q, whole, whole_lse)
        alone = torch.arange(first, total) < size  # nothing is sealed before these
        assert not sealed[alone].any()
        assert (sealed_lse[alone] == -math.inf).all()
        torch.testing.assert_close(torch.logaddexp(own_lse, sealed_lse), whole_lse, atol=1e-5, rtol=0)
        kernel.attend(layer(sealed=size), batch(first), q, sealed, merged_lse, earlier=(own, own_lse))
        torch.testing.assert_close(merged_lse, whole_lse, atol=1e-5, rtol=0)
        torch.testing.assert_close(sealed, whole, atol=4 * tolerance("fp32", "fp32", isa, 4.0), rtol=0)
