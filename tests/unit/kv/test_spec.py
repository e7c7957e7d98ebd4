"""KVCacheSpec: groups, rows, fingerprints, and the reasons why a combination cannot work."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from kvtrove.kv.formats.dense import dense
from kvtrove.kv.formats.int8 import Int8, int8
from kvtrove.kv.plane import ALIGNMENT
from kvtrove.kv.retention import ChunkedLocal, Full, Retention, SinksAndWindow, SlidingWindow
from kvtrove.kv.spec import KVCacheSpec, KVFormat, LayerKV

BF16 = dense("bfloat16")
WINDOW = SlidingWindow(512)


def layer(i: int, rule: Retention | None = None, source: int | None = None) -> LayerKV:
    return LayerKV(i, 2, 64, 64, BF16, rule or Full(), source)


def spec(*layers: LayerKV, block_size: int = 16) -> KVCacheSpec:
    return KVCacheSpec(layers, block_size)


def test_groups_split_large_kinds_until_their_rows_are_alike() -> None:
    """As for Gemma-3: 22 sliding and 4 full layers share one pool as 6 + 1 groups of at most 4 layers."""
    mixed = spec(*(layer(i, Full() if i % 6 == 5 else WINDOW) for i in range(26)))
    sizes = [(group.retention, len(group.layers)) for group in mixed.groups]
    assert sorted(n for rule, n in sizes if rule == WINDOW) == [3, 3, 4, 4, 4, 4]
    assert [n for rule, n in sizes if rule == Full()] == [4]
    assert [group.index for group in mixed.groups] == list(range(7))


def test_groups_of_almost_equal_size_are_not_split() -> None:
    assert [len(g.layers) for g in spec(*(layer(i, WINDOW if i < 5 else Full()) for i in range(9))).groups] == [5, 4]


def test_planes_of_a_row_are_aligned_and_do_not_overlap() -> None:
    odd = spec(LayerKV(0, 1, 3, 3, BF16), LayerKV(1, 3, 5, 5, dense("float32")), block_size=7)
    (group,) = odd.groups
    spans = []
    for one in group.layers:
        for plane in odd.planes(one):
            start = group.offsets[one.layer][plane.name]
            assert start % ALIGNMENT == 0
            spans.append((start, start + plane.nbytes))
    assert spans == sorted(spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert spans[-1][1] <= odd.block_bytes
    assert odd.block_bytes % ALIGNMENT == 0


def test_a_layer_with_a_source_takes_no_bytes_and_is_in_the_group_of_its_source() -> None:
    shared = spec(layer(0), layer(1, WINDOW), layer(2, source=0), layer(3, WINDOW, source=1))
    assert shared.check() == []
    assert shared.group_of == {0: 0, 1: 1, 2: 0, 3: 1}
    assert shared.block_bytes == spec(layer(0), layer(1, WINDOW)).block_bytes


def test_the_fingerprint_changes_with_all_that_changes_the_meaning_of_a_row() -> None:
    base = spec(layer(0), layer(1))
    others = [
        spec(layer(0), layer(1), block_size=32),
        spec(layer(0)),
        spec(layer(0), layer(1, WINDOW)),
        spec(layer(0), layer(1, SlidingWindow(256))),
        spec(layer(0), layer(1, ChunkedLocal(512))),
        spec(layer(0), layer(1, source=0)),
        spec(layer(0), replace(layer(1), format=dense("float16"))),
        spec(layer(0), replace(layer(1), heads=1)),
        spec(layer(0), replace(layer(1), k_dim=128)),
        spec(layer(0), replace(layer(1), v_dim=128)),
        spec(layer(0), replace(layer(1), format=replace(BF16, v=Int8("v")))),
        spec(layer(0), replace(layer(1), format=replace(BF16, v=None))),
    ]
    assert len({one.fingerprint for one in [base, *others]}) == len(others) + 1
    assert spec(layer(0), layer(1)).fingerprint == base.fingerprint


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (spec(layer(0), block_size=0), "block_size 0 must be at least 1"),
        (spec(), "no layer stores keys and values"),
        (spec(layer(0), layer(0)), "a layer is listed twice"),
        (spec(replace(layer(0), heads=0)), "layer 0: heads 0, k_dim 64 and v_dim 64 must be positive"),
        (spec(layer(0, SlidingWindow(0))), "layer 0: window 0 must be at least 1"),
        (spec(layer(0, SinksAndWindow(-1, 4))), "layer 0: sinks -1 must be at least 0"),
        (spec(layer(0, ChunkedLocal(0))), "layer 0: chunk 0 must be at least 1"),
        (spec(layer(0), layer(1, source=2)), "source 2 is not an earlier layer with storage of its own"),
        (spec(layer(0), layer(1, source=0), layer(2, source=1)), "source 1 is not an earlier layer with storage"),
        (spec(layer(0, WINDOW), layer(1, source=0)), "layer 1: differs in heads or retention from its source 0"),
        (
            spec(layer(0), replace(layer(1, WINDOW, 0), source_heads=(1, 3))),
            "reads heads 1 to 2 of its source 0, which has 2",
        ),
        (spec(layer(0), replace(layer(1, source=0), source_heads=(1, 2))), "layer 1: differs in heads or retention"),
    ],
)
def test_check_says_why_not(broken: KVCacheSpec, reason: str) -> None:
    assert any(reason in found for found in broken.check())


def test_the_fingerprint_is_made_of_ids_not_of_names_in_the_code() -> None:
    """A rename, or a new field with a default, must not make stored rows unreadable."""
    mixed = spec(layer(0), layer(1, WINDOW), layer(2, source=0))
    assert mixed.fingerprint.hex() == "9c28a550c8c227d2972a9ac547750b94aa74d7301d5d07fd37f13705614f0fa4"


def test_a_layer_with_a_source_has_its_storage_whatever_it_says_itself() -> None:
    shared = spec(layer(0), replace(layer(1, source=0), format=dense("float32")))
    assert shared.check() == []
    assert shared.storage(1) == shared.layers[0]
    assert shared.fingerprint == spec(layer(0), layer(1, source=0)).fingerprint


def test_large_and_small_layers_are_cut_by_their_bytes() -> None:
    """Two layers of float32 at the edges weigh as much as eight of int8 between them."""
    wide, small = dense("float32"), int8()
    kinds = [wide, *[small] * 8, wide]
    layers = [replace(layer(i), format=kind) for i, kind in enumerate(kinds)]
    rest = [replace(layer(10 + i, WINDOW), format=small) for i in range(4)]
    cut = spec(*layers, *rest)
    assert max(group.used_bytes for group in cut.groups) < 1.5 * min(group.used_bytes for group in cut.groups)


def test_v_is_read_out_of_k_where_it_has_no_codec() -> None:
    latent = replace(layer(0), v_dim=48, format=replace(BF16, v=None))
    assert [plane.name for plane in spec(latent).planes(latent)] == ["k"]
    assert spec(replace(layer(0), format=KVFormat(None, None))).check() == ["layer 0: neither K nor V is stored"]
