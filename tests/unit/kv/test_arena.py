"""Arena and dense format: rows of bytes, typed views on them."""

from __future__ import annotations

import resource
import sys
import zlib
from pathlib import Path

import pytest
import torch

from kvtrove.config import ConfigError
from kvtrove.kv.arena import Arena
from kvtrove.kv.formats.dense import dense
from kvtrove.kv.formats.int8 import int8
from kvtrove.kv.plane import ALIGNMENT, Plane
from kvtrove.kv.retention import Full, SlidingWindow
from kvtrove.kv.spec import KVCacheSpec, LayerKV

MIXED = KVCacheSpec(
    (
        LayerKV(0, 2, 3, 3, dense("bfloat16")),
        LayerKV(1, 1, 4, 4, dense("float32"), SlidingWindow(8)),
        LayerKV(2, 2, 3, 3, dense("bfloat16"), source=0),
        LayerKV(3, 2, 3, 3, dense("float16")),
    ),
    block_size=5,
)


def test_views_are_typed_strided_and_share_the_rows() -> None:
    arena = Arena(MIXED, 6)
    assert arena.nbytes == arena.rows.numel() == 6 * MIXED.block_bytes
    for layer, dtype, shape in (
        (0, torch.bfloat16, (6, 2, 5, 3)),
        (1, torch.float32, (6, 1, 5, 4)),
        (3, torch.float16, (6, 2, 5, 3)),
    ):
        view = arena.views(layer)
        assert list(view) == ["k", "v"]
        for plane in view.values():
            assert (plane.dtype, plane.shape) == (dtype, shape)
            assert plane.stride(0) * plane.element_size() == MIXED.block_bytes
            assert not plane.any(), "rows start as zeros"
            assert plane.untyped_storage().data_ptr() == arena.rows.untyped_storage().data_ptr()


def test_planes_do_not_alias_within_a_group() -> None:
    """Layers 0 and 3 share a row; writing every plane in turn must leave the others alone."""
    arena = Arena(MIXED, 3)
    planes = [plane for layer in (0, 3) for plane in arena.views(layer).values()]
    for number, plane in enumerate(planes, 1):
        plane.fill_(number)
    assert [plane.unique().tolist() for plane in planes] == [[1.0], [2.0], [3.0], [4.0]]


def test_a_layer_with_a_source_reads_its_storage() -> None:
    arena = Arena(MIXED, 2)
    arena.views(0)["v"][1, 1, 4, 2] = 7
    assert arena.views(2)["v"][1, 1, 4, 2] == 7


def test_rows_are_copied_one_after_the_other() -> None:
    arena = Arena(MIXED, 4)
    arena.rows[:] = torch.arange(4, dtype=torch.uint8).unsqueeze(1)
    arena.copy_rows([(1, 2), (2, 3), (0, 2)])
    assert arena.rows[:, 0].tolist() == [0, 1, 0, 1]
    assert (arena.rows == arena.rows[:, :1]).all(), "whole rows"


def test_crc_is_that_of_the_row() -> None:
    arena = Arena(MIXED, 2)
    assert arena.crc(1) == zlib.crc32(bytes(MIXED.block_bytes))
    arena.rows[1, -1] = 1
    assert arena.crc(1) == zlib.crc32(bytes(MIXED.block_bytes - 1) + b"\x01")
    assert arena.crc(0) != arena.crc(1)


def test_too_much_memory_is_refused_in_bytes() -> None:
    num_blocks = 2**50
    with pytest.raises(ConfigError, match=rf"kv: {num_blocks * MIXED.block_bytes} bytes .* lower num_blocks"):
        Arena(MIXED, num_blocks)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_an_untouched_arena_takes_no_memory() -> None:
    spec = KVCacheSpec((LayerKV(0, 8, 128, 128, dense("float32")),), 128)
    before = resident_bytes()
    arena = Arena(spec, 2**30 // spec.block_bytes)
    arena.views(0)["k"][-1, 0, 0, 0] = 1
    assert arena.nbytes == 2**30
    assert arena.rows.data_ptr() % ALIGNMENT == 0
    assert resident_bytes() - before < 2**26, "the rows were written to although nothing is stored in them"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_on_cuda() -> None:
    arena = Arena(MIXED, 3, "cuda")
    arena.rows[1] = 5
    arena.copy_rows([(1, 2)])
    assert arena.crc(2) == arena.crc(1) == zlib.crc32(b"\x05" * MIXED.block_bytes)
    assert arena.views(0)["k"].is_cuda
    assert arena.device == "cuda"


@pytest.mark.parametrize("block_size", [4, 16, 48])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32"])
def test_dense_format_returns_what_it_was_given(dtype: str, block_size: int) -> None:
    kv_format = dense(dtype)
    view = Arena(KVCacheSpec((LayerKV(0, 2, 6, 6, kv_format, Full()),), block_size), 5).views(0)
    half = block_size // 2
    k, v = (torch.randint(1, 100, (block_size + half, 2, 6)).to(getattr(torch, dtype)) for _ in range(2))
    slots = torch.cat([torch.arange(block_size) + 2 * block_size, torch.arange(half) + 4 * block_size])
    order = torch.randperm(len(slots))
    kv_format.encode(k[order], v[order], view, slots[order])
    for given, read in zip((k, v), kv_format.decode(view, torch.tensor([2, 4])), strict=True):
        assert read.shape == (2 * block_size, 2, 6)
        assert torch.equal(read[: block_size + half], given)
        assert not read[block_size + half :].any(), "the other half was not written"


def test_the_layout_enters_the_fingerprint() -> None:
    prints = {
        KVCacheSpec((LayerKV(0, 2, 64, 64, kv_format),), 32).fingerprint
        for kv_format in (dense("bfloat16"), dense("bfloat16", "plain"), int8(), int8("plain"))
    }
    assert len(prints) == 4


@pytest.mark.parametrize("block_size", [4, 32])
@pytest.mark.parametrize("size", [1e-9, 1e-5, 1e-3, 1.0, 1e4, 1e6])
def test_int8_errs_by_half_a_step(size: float, block_size: int) -> None:
    """Within half of max|x| / 127 and the rounding of its scale, at every magnitude that float16 scales span."""
    kv_format = int8()
    view = Arena(KVCacheSpec((LayerKV(0, 3, 8, 8, kv_format),), block_size), 3).views(0)
    k, v = torch.randn(2, block_size, 3, 8) * size
    v[0] = 0
    kv_format.encode(k, v, view, torch.arange(block_size) + block_size)
    for given, read in zip((k, v), kv_format.decode(view, torch.tensor([1])), strict=True):
        step = given.abs().amax(-1, keepdim=True) / 127 * (1 + 2**-9) + 2**-23
        assert ((read - given).abs() <= step / 2).all()


def test_dense_format_describes_itself() -> None:
    def planes(dtype: str, block_size: int) -> tuple[Plane, ...]:
        return dense(dtype).planes(LayerKV(0, 4, 64, 64, dense(dtype)), block_size)

    tiled = (Plane("k", "bfloat16", (4, 2, 32, 16, 2)), Plane("v", "bfloat16", (4, 16, 64, 2)))
    assert planes("bfloat16", 32) == tiled
    assert planes("bfloat16", 8) == (Plane("k", "bfloat16", (4, 8, 64)), Plane("v", "bfloat16", (4, 8, 64)))
    assert planes("float32", 16)[0].shape == (4, 1, 64, 16, 1)
    assert {p.nbytes for n in (8, 16, 32) for p in planes("bfloat16", n)} == {4 * n * 64 * 2 for n in (8, 16, 32)}
    assert (dense("bfloat16").name, dense("bfloat16").rope) == ("bfloat16", "post")


@pytest.mark.parametrize("huge_pages", ["auto", "hugetlb", "off"])
def test_rows_are_zeros_in_pages_of_any_kind_whether_the_system_has_them_or_not(huge_pages: str) -> None:
    arena = Arena(MIXED, 4, "cpu", huge_pages)
    assert arena.rows.shape == (4, MIXED.block_bytes)
    assert not bool(arena.rows.any())
    arena.rows.fill_(7)
    assert bool((arena.rows == 7).all())
