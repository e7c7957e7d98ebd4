"""The reference backend against attention written as loops over single queries, on random ragged batches."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kvtrove.attention.backend import AttentionBatch, AttentionLayer, GroupTables
from kvtrove.attention.merge import merge, softmax_mix
from kvtrove.attention.reference import ReferenceBackend
from kvtrove.kv.formats.dense import Dense, dense
from kvtrove.kv.retention import ChunkedLocal, Full, Retention, SinksAndWindow, SlidingWindow, live_blocks
from kvtrove.kv.spec import KVFormat, LayerKV, Rope
from kvtrove.models.layers.rope import RotaryEmbedding

RETENTIONS: list[Retention] = [
    Full(),
    SlidingWindow(1),
    SlidingWindow(9),
    SinksAndWindow(3, 6),
    SinksAndWindow(8, 4),
    ChunkedLocal(10),
]


@dataclass(frozen=True)
class Shape:
    heads: int = 4
    kv_heads: int = 2
    dim: int = 8
    block_size: int = 4
    dtype: str = "float32"
    device: str = "cpu"


class Case:
    """Sequences of (computed, new) tokens in an arena that is NaN wherever nothing live was written."""

    def __init__(
        self, lengths: list[tuple[int, int]], retention: Retention, shape: Shape, softcap: float | None = None
    ):
        self.lengths, self.retention, self.shape = lengths, retention, shape
        torch.manual_seed(sum(a * 7 + b for a, b in lengths))
        self.dtype = getattr(torch, shape.dtype)
        totals = [start + new for start, new in lengths]
        self.k, self.v = ([self._draw(n, shape.kv_heads) for n in totals] for _ in range(2))
        self.q = [self._draw(new, shape.heads) for _, new in lengths]
        size = shape.block_size
        num_blocks = sum(-(-n // size) for n in totals) + 3
        free = random.Random(len(lengths)).sample(range(num_blocks), num_blocks)
        width = max(-(-n // size) for n in totals) + 1
        self.table = torch.full((len(lengths), width), -1, dtype=torch.int32, device=shape.device)
        for s, (start, new) in enumerate(lengths):
            needed = {*live_blocks(retention, start, size), *range(start // size, -(-(start + new) // size))}
            for block in needed if new else ():
                self.table[s, block] = free.pop()
        kept = LayerKV(0, shape.kv_heads, shape.dim, shape.dim, dense(shape.dtype))
        planes = kept.format.planes(kept, size)
        self.view = {
            p.name: torch.full((num_blocks, *p.shape), math.nan, dtype=self.dtype, device=shape.device) for p in planes
        }
        self.layer = AttentionLayer(
            index=0,
            num_heads=shape.heads,
            kv_heads=shape.kv_heads,
            k_dim=shape.dim,
            v_dim=shape.dim,
            scale=0.4,
            retention=retention,
            format=dense(shape.dtype),
            group=0,
            view=self.view,
            block_size=size,
            softcap=softcap,
        )
        for s, (start, _) in enumerate(lengths):
            live = [p for span in retention.live(start) for p in span if self.table[s, p // size] >= 0]
            self.layer.format.encode(self.k[s][live], self.v[s][live], self.view, self._slots(s, live))

    def _draw(self, tokens: int, heads: int) -> Tensor:
        return torch.randn(tokens, heads, self.shape.dim).to(self.shape.device, self.dtype)

    def _slots(self, s: int, positions: list[int]) -> Tensor:
        size = self.shape.block_size
        slots = [int(self.table[s, p // size]) * size + p % size for p in positions]
        return torch.tensor(slots, dtype=torch.int64, device=self.shape.device)

    def run(self, backend: ReferenceBackend, store: bool = True) -> list[Tensor]:
        new = [range(start, start + count) for start, count in self.lengths]
        slots = torch.cat([self._slots(s, list(positions)) for s, positions in enumerate(new)])
        ends = [0]
        for _, count in self.lengths:
            ends.append(ends[-1] + count)
        batch = AttentionBatch(ends, [start for start, _ in self.lengths], (GroupTables(slots, self.table),))
        k, v = (torch.cat([x[s][list(p)] for s, p in enumerate(new)]) for x in (self.k, self.v))
        plan = backend.plan(batch)
        out = backend.run(torch.cat(self.q), k if store else None, v if store else None, self.layer, plan)
        return list(out.split([count for _, count in self.lengths]))

    def expected(self) -> list[Tensor]:
        """One query and one head at a time, in float64."""
        results = []
        shared = self.shape.heads // self.shape.kv_heads
        for s, (start, new) in enumerate(self.lengths):
            out = torch.zeros(new, self.shape.heads, self.shape.dim, dtype=torch.float64)
            for i in range(new):
                seen = [p for span in self.retention.live(start + i) for p in span] + [start + i]
                for h in range(self.shape.heads):
                    keys, values = self.k[s][seen, h // shared].double(), self.v[s][seen, h // shared].double()
                    scores = keys @ self.q[s][i, h].double() * self.layer.scale
                    if self.layer.softcap is not None:
                        scores = torch.tanh(scores / self.layer.softcap) * self.layer.softcap
                    if self.layer.sink_logits is not None:  # one more score, of value zero
                        scores = torch.cat((scores, self.layer.sink_logits[h : h + 1].double()))
                        values = torch.cat((values, torch.zeros_like(values[:1])))
                    out[i, h] = (scores.softmax(0) @ values).cpu()
            results.append(out)
        return results


def check(case: Case, backend: ReferenceBackend | None = None, tolerance: float = 1e-5) -> None:
    for got, expected in zip(case.run(backend or ReferenceBackend()), case.expected(), strict=True):
        assert got.dtype == case.dtype
        torch.testing.assert_close(got.double().cpu(), expected, atol=tolerance, rtol=tolerance)


@given(
    lengths=st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1, 1, 1, 2, 7, 20])), min_size=1, max_size=6),
    retention=st.sampled_from(RETENTIONS),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    block_size=st.sampled_from([1, 4, 16]),
    max_scores=st.sampled_from([1, 200, 1 << 24]),
)
def test_random_batches(
    lengths: list[tuple[int, int]], retention: Retention, heads: tuple[int, int], block_size: int, max_scores: int
) -> None:
    shape = Shape(heads=heads[0], kv_heads=heads[1], block_size=block_size)
    check(Case(lengths, retention, shape), ReferenceBackend(max_scores))


@pytest.mark.parametrize("retention", RETENTIONS, ids=str)
def test_softcap(retention: Retention) -> None:
    check(Case([(0, 12), (17, 1), (3, 1)], retention, Shape(), softcap=0.7))


@pytest.mark.parametrize("retention", RETENTIONS[:3], ids=str)
def test_sink_logits(retention: Retention) -> None:
    case = Case([(0, 12), (17, 1), (3, 1)], retention, Shape())
    case.layer = replace(case.layer, sink_logits=torch.tensor([-1.0, 2.0, 0.5, 4.0]))
    check(case)


def test_a_sink_beside_one_part_of_the_keys_counts_once_in_both() -> None:
    """Formats that encode whole blocks attend twice: over sealed blocks, and over the query's own."""
    torch.manual_seed(0)
    scores, v, sinks = torch.randn(3, 5, 20), torch.randn(3, 20, 8), torch.randn(3, 5)
    whole, _ = softmax_mix(scores, v, sinks)
    parts = softmax_mix(scores[..., :12], v[:, :12]), softmax_mix(scores[..., 12:], v[:, 12:], sinks)
    torch.testing.assert_close(merge(parts), whole)


def test_any_partition_of_the_keys_gives_the_full_softmax() -> None:
    """Parts may be empty for a query, and keys in any order."""
    torch.manual_seed(1)
    q, k, v = torch.randn(3, 5, 16), torch.randn(3, 40, 16), torch.randn(3, 40, 8)
    scores = q @ k.mT
    scores[:, 0, 3:] = -torch.inf  # a query that reads three keys only
    whole, full = scores.softmax(-1) @ v, scores.logsumexp(-1)
    for parts in (1, 2, 3, 7, 40):
        owner = torch.randperm(40) % parts
        mixed = [softmax_mix(scores[..., owner == part], v[:, owner == part]) for part in range(parts)]
        torch.testing.assert_close(merge(mixed), whole)
        torch.testing.assert_close(torch.stack([lse for _, lse in mixed]).logsumexp(0), full)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("retention", RETENTIONS, ids=str)
def test_cuda(retention: Retention) -> None:
    shape = Shape(device="cuda", dtype="bfloat16")
    check(Case([(0, 30), (41, 1), (0, 1), (35, 1), (17, 6)], retention, shape, softcap=3.0), tolerance=2**-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2**-7), ("float16", 2**-10)])
def test_half_precision_is_rounded_once_at_the_end(dtype: str, tolerance: float) -> None:
    check(Case([(0, 12), (17, 1), (30, 5)], Full(), Shape(dtype=dtype)), tolerance=tolerance)


def test_a_sequence_without_new_tokens_is_skipped() -> None:
    check(Case([(5, 1), (9, 0), (0, 3)], Full(), Shape()))


def test_a_layer_with_a_source_reads_what_the_source_stored() -> None:
    case = Case([(6, 2), (11, 1)], Full(), Shape())
    stored = case.run(ReferenceBackend())
    again = case.run(ReferenceBackend(), store=False)
    assert all(torch.equal(a, b) for a, b in zip(stored, again, strict=True))


def test_stale_values_beyond_the_end_are_not_read() -> None:
    """The tail of the last block may hold what an earlier owner left, not only NaN."""
    case = Case([(6, 1)], Full(), Shape(block_size=8))
    expected = case.expected()[0]
    for plane in case.view.values():
        plane[plane.isnan()] = 1e30
    torch.testing.assert_close(case.run(ReferenceBackend())[0].double(), expected, atol=1e-5, rtol=1e-5)


@dataclass(frozen=True)
class Unrotated(Dense):
    """Keys as they are before their rotation."""

    @property
    def rope(self) -> Rope:
        return "pre"


def test_reasons_name_layer() -> None:
    layer = Case([(0, 1)], Full(), Shape()).layer
    backend = ReferenceBackend()
    assert backend.reasons_against(layer, "cpu") == []
    assert backend.reasons_against(replace(layer, index=3, num_heads=5), "cpu") == [
        "layer 3: 5 heads cannot share 2 kv_heads evenly"
    ]


def test_keys_that_are_rotated_when_they_are_read() -> None:
    """In two steps, so that keys of the first are rotated for positions that the second's rotation does not hold."""
    answers, stored = [], []
    for codec in (Dense("k", "float32"), Unrotated("k", "float32")):
        case = Case([(0, 40)], Full(), Shape(4, 2, 16, 16))
        layer = replace(case.layer, format=KVFormat(codec, case.layer.format.v))
        backend, table = ReferenceBackend(), RotaryEmbedding(10.0 ** -torch.arange(8.0))
        for start, stop in ((0, 25), (25, 40)):
            at = torch.arange(start, stop)
            slots = case._slots(0, at.tolist())
            plan = backend.plan(AttentionBatch([0, stop - start], [start], (GroupTables(slots, case.table),)))
            q, k, v = (x[0][start:stop] for x in (case.q, case.k, case.v))
            answers.append(backend.run(q, k, v, layer, plan, table.at(at, torch.float32)))
        stored.append(layer.view["k"].nan_to_num())
    assert torch.equal(answers[0], answers[2])
    assert torch.equal(answers[1], answers[3])
    assert not torch.equal(*stored)
