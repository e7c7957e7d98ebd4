"""Where packed weights lie: the allocator under sanitizers, and what Python says about it."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import pytest

from kvtrove import kernels, loading
from kvtrove.kernels.linear import PackedWeights
from tests.unit.kernels.sanitized import Kernels

PAGE = 2 << 20
SMAPS = """{first:x}-{last:x} rw-p 00000000 00:00 0
Size:               {size} kB
AnonHugePages:      {huge} kB
Private_Hugetlb:       0 kB
1000-2000 rw-p 00000000 00:00 0
AnonHugePages:      2048 kB
"""


def test_blocks_share_huge_pages_are_used_again_and_run_out_without_harm(tmp_path: Path) -> None:
    assert Kernels(tmp_path, ("common/pages",)).run("huge_pages") == "all right\n"


def test_only_huge_pages_of_our_own_memory_count() -> None:
    weights = PackedWeights(2048, 1024)
    assert weights.nbytes == 2 * PAGE
    [(first, last), *_] = kernels._extension().page_ranges()
    text = SMAPS.format(first=first, last=last, size=(last - first) // 1024, huge=2048)
    assert kernels.huge_page_bytes(text)[0] == PAGE
    assert kernels.huge_page_bytes("")[0] == 0


def test_memory_grows_by_what_is_packed_and_comes_back() -> None:
    gc.collect()
    before = kernels.huge_page_bytes("")[1]
    many = [PackedWeights(1024, 256) for _ in range(16)]  # half a megabyte each
    assert 16 * 1024 * 256 * 2 - PAGE <= kernels.huge_page_bytes("")[1] - before <= 16 * 1024 * 256 * 2 + PAGE
    del many
    gc.collect()
    assert kernels.huge_page_bytes("")[1] == before


def test_another_kind_of_pages_is_refused() -> None:
    with pytest.raises(ValueError, match="huge_pages: 'large' is not one of auto, hugetlb, off"):
        kernels.set_huge_pages("large")


@pytest.mark.parametrize(("huge", "wanted", "warns"), [(0, "auto", True), (8 * PAGE, "auto", False), (0, "off", False)])
def test_one_notice_says_how_to_allow_huge_pages(
    huge: int, wanted: str, warns: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "huge_page_bytes", lambda: (huge, 9 * PAGE))
    with caplog.at_level(logging.WARNING, "kvtrove"):
        loading._say_where_weights_lie(wanted)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warns
    assert ("gives none of 18MiB" in caplog.text and "huge_pages=hugetlb" in caplog.text) == warns
