"""The CPU kernels against attention in float64, on random ragged batches over arenas of NaN."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kvtrove import kernels
from kvtrove.attention.backend import AttentionBatch, GroupTables
from kvtrove.attention.cpu import CpuBackend
from kvtrove.attention.reference import ReferenceBackend
from kvtrove.kv.formats.int8 import int8
from kvtrove.kv.retention import ChunkedLocal, Full, Retention, SinksAndWindow, SlidingWindow
from kvtrove.kv.spec import KVFormat, LayerKV
from kvtrove.models.layers.rope import RotaryEmbedding, Rotation
from tests.unit.attention.test_reference import RETENTIONS, Case, Shape, Unrotated

LEVELS = ("portable", "avx2", "avx512", "amx")
HERE = LEVELS[: LEVELS.index(kernels.isa()) + 1]
ANY = RotaryEmbedding(torch.ones(1))
LONG: list[Retention] = [Full(), SlidingWindow(300), SinksAndWindow(20, 300), ChunkedLocal(500)]
TOLERANCE = {"float32": 1e-5, "float16": 2**-10, "bfloat16": 2**-7}
heads_of = st.sampled_from([(4, 4), (4, 2), (6, 1), (14, 2), (5, 5), (50, 1)])
lengths_of = st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1, 1, 1, 2, 7, 20])), min_size=1, max_size=6)


def int8_view(case: Case) -> Case:
    """The case with an int8 cache; scales are NaN wherever nothing was stored."""
    size, num_blocks = case.shape.block_size, case.view["k"].shape[0]
    case.layer = replace(case.layer, format=int8(), view={})
    kept = LayerKV(0, case.shape.kv_heads, case.shape.dim, case.shape.dim, int8())
    for plane in kept.format.planes(kept, size):
        fill = math.nan if plane.dtype == "float16" else 77
        case.layer.view[plane.name] = torch.full(  # type: ignore[index]
            (num_blocks, *plane.shape), fill, dtype=getattr(torch, plane.dtype)
        )
    for s, (start, _) in enumerate(case.lengths):
        live = [p for span in case.retention.live(start) for p in span if case.table[s, p // size] >= 0]
        case.layer.format.encode(case.k[s][live], case.v[s][live], case.layer.view, case._slots(s, live))
    return case


def check(case: Case, backend: CpuBackend, tolerance: float) -> None:
    for got, expected in zip(case.run(backend), case.expected(), strict=True):  # type: ignore[arg-type]
        assert got.dtype == case.dtype
        torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)


@given(
    lengths=lengths_of,
    retention=st.sampled_from(RETENTIONS),
    heads=heads_of,
    dim=st.sampled_from([8, 16, 24, 64, 80]),
    block_size=st.sampled_from([1, 4, 16, 32, 48]),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    softcap=st.sampled_from([None, 0.7]),
    isa=st.sampled_from(HERE),
)
def test_random_batches(lengths, retention, heads, dim, block_size, dtype, softcap, isa) -> None:
    shape = Shape(*heads, dim, block_size, dtype)
    check(Case(lengths, retention, shape, softcap), CpuBackend(isa), TOLERANCE[dtype])


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("block_size", [4, 32])
@pytest.mark.parametrize("retention", LONG, ids=str)
def test_chunks_and_splits_of_long_sequences(retention: Retention, block_size: int, isa: str) -> None:
    """Around the borders at 256 and 512 tokens, decodes and prefill chunks, blocks of the window alone held."""
    lengths = [(255, 1), (256, 1), (511, 3), (512, 1), (1040, 1), (700, 9), (0, 3)]
    check(Case(lengths, retention, Shape(2, 1, 16, block_size)), CpuBackend(isa), 1e-5)


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256, 512])
def test_head_dims(dim: int) -> None:
    case = Case([(40, 1), (3, 20)], SlidingWindow(33), Shape(4, 2, dim, 16, "bfloat16"))
    check(case, CpuBackend(), TOLERANCE["bfloat16"])


@given(
    lengths=lengths_of,
    retention=st.sampled_from(RETENTIONS),
    heads=heads_of,
    block_size=st.sampled_from([1, 16, 32]),
    softcap=st.sampled_from([None, 0.7]),
    isa=st.sampled_from(HERE),
)
def test_int8_is_read_as_the_reference_decodes_it(lengths, retention, heads, block_size, softcap, isa) -> None:
    case = int8_view(Case(lengths, retention, Shape(*heads, 16, block_size), softcap))
    expected = case.run(ReferenceBackend())
    stored = {name: plane.clone() for name, plane in case.layer.view.items()}
    for got, wanted in zip(case.run(CpuBackend(isa)), expected, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(got, wanted, atol=4e-4, rtol=4e-4)
    for name, plane in case.layer.view.items():
        assert torch.equal(plane.nan_to_num(), stored[name].nan_to_num()), f"{name} is stored as the format does"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("block_size", [4, 32])
def test_kernels_store_what_the_format_encodes(dtype: str, block_size: int) -> None:
    case = Case([(0, 40), (13, 1)], Full(), Shape(4, 2, 24, block_size, dtype))
    case.run(ReferenceBackend())
    stored = {name: plane.clone() for name, plane in case.view.items()}
    for plane in case.view.values():
        plane[~plane.isnan()] = 3.0
    computed = list(range(13))
    case.layer.format.encode(case.k[1][computed], case.v[1][computed], case.view, case._slots(1, computed))
    case.run(CpuBackend())  # type: ignore[arg-type]
    for name, plane in case.view.items():
        assert torch.equal(plane.nan_to_num(7.0), stored[name].nan_to_num(7.0))


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("rotary_dim", [24, 16])
def test_rotation_on_the_way_is_that_of_torch(stored: str, rotary_dim: int) -> None:
    """The same bits in the cache and the same answers as from queries and keys that come rotated."""
    dtype = "bfloat16" if stored == "int8" else stored
    case = Case([(0, 40)], Full(), Shape(4, 2, 24, 32, dtype))
    if stored == "int8":
        case = int8_view(case)
    angles = torch.rand(40, 1, rotary_dim // 2) * 6
    rotate = Rotation(angles.cos().to(case.dtype), angles.sin().to(case.dtype), ANY)
    backend = CpuBackend()
    plan = backend.plan(AttentionBatch([0, 40], [0], (GroupTables(case._slots(0, list(range(40))), case.table),)))
    q, k, v = case.q[0].to(case.dtype), case.k[0].to(case.dtype), case.v[0].to(case.dtype)
    expected = backend.run(rotate(q), rotate(k), v, case.layer, plan)
    planes = {name: plane.clone() for name, plane in case.layer.view.items()}
    got = backend.run(q.clone(), k, v, case.layer, plan, rotate)
    assert torch.equal(got, expected)
    for name, plane in case.layer.view.items():
        assert torch.equal(plane.nan_to_num(), planes[name].nan_to_num())


def test_angles_that_do_not_fit_are_refused() -> None:
    case = Case([(0, 3)], Full(), Shape(2, 2, 16, 32))
    backend = CpuBackend()
    plan = backend.plan(AttentionBatch([0, 3], [0], (GroupTables(case._slots(0, [0, 1, 2]), case.table),)))
    for angles in (torch.ones(2, 1, 8), torch.ones(3, 1, 9), torch.ones(3, 1, 8).bfloat16(), torch.ones(6, 1, 8)[::2]):
        with pytest.raises(TypeError, match="cos, sin: contiguous"):
            backend.run(case.q[0], case.k[0], case.v[0], case.layer, plan, Rotation(angles, angles, ANY))


@pytest.mark.parametrize("stored", ["bfloat16", "int8"])
@pytest.mark.parametrize("retention", LONG, ids=str)
def test_bits_depend_on_the_sequence_alone(retention: Retention, stored: str) -> None:
    """Alone or among others, whole or in chunks, with one thread or three: the same bits for every token."""
    case = Case([(0, 1030), (40, 9), (700, 1)], retention, Shape(6, 2, 16, 32, "bfloat16"))
    if stored == "int8":
        case = int8_view(case)
    whole = case.run(CpuBackend(num_threads=1))  # type: ignore[arg-type]
    many = case.run(CpuBackend(num_threads=3))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(whole, many, strict=True))
    for threads in (1, 3):
        backend = CpuBackend(num_threads=threads)
        for begin, end in ((0, 3), (3, 500), (500, 501), (501, 1029), (1029, 1030)):
            batch = AttentionBatch(
                [0, end - begin], [begin], (GroupTables(case._slots(0, list(range(begin, end))), case.table[:1]),)
            )
            part = backend.run(case.q[0][begin:end], None, None, case.layer, backend.plan(batch))
            assert torch.equal(part, whole[0][begin:end]), f"tokens {begin} to {end} with {threads} threads"


def test_results_over_disjoint_keys_merge_by_their_log_sum_exp() -> None:
    def attend(retention: Retention) -> tuple[Tensor, Tensor]:
        part = replace(case.layer, index=len(backend._layers), retention=retention)
        out, lse = torch.empty_like(case.q[0]), torch.full((1, 4), math.nan)
        plan = backend.plan(batch)
        backend.kernel.attend(backend.paged(part), plan.group(0), case.q[0], out, lse)
        return out, lse[..., None]

    case, backend = Case([(0, 700)], Full(), Shape(dim=16, block_size=32)), CpuBackend()
    expected = case.run(backend)[0]  # type: ignore[arg-type]
    batch = AttentionBatch([0, 1], [699], (GroupTables(case._slots(0, [699]), case.table),))
    case.q[0] = case.q[0][-1:]
    (near, near_lse), (both, both_lse) = attend(SlidingWindow(200)), attend(SinksAndWindow(64, 200))
    everything, lse = attend(Full())
    assert torch.equal(everything[0], expected[-1])
    scores = torch.einsum("hd,nhd->hn", case.q[0][0].double(), case.k[0].double().repeat_interleave(2, 1)) * 0.4
    torch.testing.assert_close(lse[0, :, 0].double(), scores.logsumexp(-1))
    sinks = (both.double() - near * (near_lse - both_lse).exp()) / (1 - (near_lse - both_lse).exp())
    weights = scores[:, :64].softmax(-1)
    wanted = torch.einsum("hn,nhd->hd", weights, case.v[0][:64].double().repeat_interleave(2, 1))
    torch.testing.assert_close(sinks[0], wanted, atol=1e-3, rtol=1e-3)


def test_levels_agree() -> None:
    results = [Case([(90, 1), (30, 40)], Full(), Shape(14, 2, 64, 32)).run(CpuBackend(isa)) for isa in HERE]  # type: ignore[arg-type]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_memory_of_calls_is_reused() -> None:
    """Decoding on takes no more scratch than its first step."""
    backend = CpuBackend(num_threads=2)
    sizes = []
    for start in (600, 601, 700, 1000):
        case = Case([(start, 1), (20, 1)], Full(), Shape(4, 2, 16, 32))
        case.run(backend)  # type: ignore[arg-type]
        sizes.append(backend.kernel.scratch_bytes)
    assert sizes[0] > 0
    assert sizes == sizes[:1] * len(sizes)


def test_reasons_name_layer_and_what_is_missing() -> None:
    layer, backend = Case([(0, 1)], Full(), Shape()).layer, CpuBackend()
    assert backend.reasons_against(layer, "cpu") == []
    odd = replace(layer, index=3, num_heads=5, k_dim=20, v_dim=20, format=KVFormat(None, Unrotated("v", "float32")))
    assert backend.reasons_against(odd, "cuda:0") == [
        "layer 3: its cache is on cuda:0",
        "layer 3: 5 heads cannot share 2 kv_heads evenly",
        "layer 3: a side that lies in the other one has no CPU kernel",
        "layer 3: head_dim 20 is not a multiple of 8 up to 1024",
        "layer 3: format float32 has no CPU kernel",
    ]


def test_a_block_that_is_not_held_is_refused() -> None:
    case, backend = Case([(40, 1)], Full(), Shape()), CpuBackend()
    case.table[0, 3] = -1
    with pytest.raises(IndexError, match=r"block_table\[0, 3\] is -1, but a query reads positions 0 to 40"):
        case.run(backend)  # type: ignore[arg-type]
    case.table[0, 3] = 1000
    with pytest.raises(IndexError, match=r"block_table\[0, 3\] is 1000, .* the arena has"):
        case.run(backend)  # type: ignore[arg-type]


def test_wrong_queries_and_slots_are_refused() -> None:
    case, backend = Case([(4, 1)], Full(), Shape()), CpuBackend()
    slots, table = case._slots(0, [4]), case.table
    plan = backend.plan(AttentionBatch([0, 1], [4], (GroupTables(slots + 10**6, table),)))
    with pytest.raises(IndexError, match=r"slots\[0\] is .*, but the arena has"):
        backend.run(case.q[0], None, None, case.layer, plan)
    plan = backend.plan(AttentionBatch([0, 1], [4], (GroupTables(slots, table),)))
    for bad in (case.q[0].double(), case.q[0][:, :2], torch.cat([case.q[0]] * 2)):
        with pytest.raises(TypeError, match=r"q: \(1, 4, 8\) of float32, float16 or bfloat16"):
            backend.run(bad, None, None, case.layer, plan)
    with pytest.raises(ValueError, match="query_start must ascend"):
        backend.plan(AttentionBatch([0, 2], [4], (GroupTables(slots, table),))).group(0)
