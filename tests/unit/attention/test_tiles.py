"""How a step is cut into tiles: every token once, only live blocks, bounded padding."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from kvtrove.attention import reference, tiles
from kvtrove.attention.backend import AttentionBatch, GroupTables
from kvtrove.attention.tiles import Tile, make_tiles
from kvtrove.kv.retention import Full, Retention, SinksAndWindow, SlidingWindow

SIZE = 4


def cut(lengths: list[tuple[int, int]], retention: Retention, block_size: int = SIZE) -> list[Tile]:
    """Tiles of sequences with (computed, new) tokens, whose block b is number 1000 * sequence + b."""
    width = max(-(-(start + new) // block_size) for start, new in lengths)
    table = torch.arange(width, dtype=torch.int32) + 1000 * torch.arange(len(lengths), dtype=torch.int32)[:, None]
    ends = [sum(new for _, new in lengths[:i]) for i in range(len(lengths) + 1)]
    batch = AttentionBatch(ends, [start for start, _ in lengths], (GroupTables(torch.empty(0), table),))
    return make_tiles(batch, 0, retention, block_size)


@given(st.lists(st.tuples(st.integers(0, 200), st.sampled_from([1, 1, 1, 1, 3, 9])), min_size=1, max_size=12))
def test_every_token_is_in_exactly_one_tile(lengths: list[tuple[int, int]]) -> None:
    rows = torch.cat([tile.rows for tile in cut(lengths, SlidingWindow(7))])
    assert sorted(rows.tolist()) == list(range(sum(new for _, new in lengths)))


def test_a_window_reads_its_own_blocks_only() -> None:
    (tile,) = cut([(1000, 1)], SlidingWindow(8))  # live: 993 .. 1000
    assert tile.block_ids.tolist() == [248, 249, 250]
    (tile,) = cut([(1000, 6)], SlidingWindow(8))  # the last query is at 1005
    assert tile.block_ids.tolist() == [248, 249, 250, 251]


def test_sinks_and_window_leave_out_what_lies_between() -> None:
    (tile,) = cut([(1000, 1)], SinksAndWindow(5, 4))
    assert tile.block_ids.tolist() == [0, 1, 249, 250]
    assert tile.seen.sum() == 5 + 4


def test_decodes_of_similar_length_share_a_tile_and_others_do_not() -> None:
    together = cut([(40, 1), (30, 1), (41, 1)], Full())
    assert [tile.num_sequences for tile in together] == [3]
    apart = cut([(400, 1), (30, 1), (300, 1), (2, 5)], Full())
    assert sorted((tile.num_sequences, tile.num_queries) for tile in apart) == [(1, 1), (1, 5), (2, 1)]
    padding = [1 - tile.seen.float().mean() for tile in apart]
    assert max(padding) < 0.5


def test_tiles_of_several_decodes_stay_small() -> None:
    many = cut([(4000, 1)] * 40, Full(), block_size=16)
    assert sum(tile.num_sequences for tile in many) == 40
    assert max(tile.positions.numel() for tile in many) <= tiles.MAX_KEYS


@given(start=st.integers(0, 300), new=st.integers(1, 300), window=st.sampled_from([0, 5, 64]))
def test_runs_of_queries_are_bounded_and_cover_what_each_query_reads(start: int, new: int, window: int) -> None:
    max_pairs = 2000
    (tile,) = cut([(start, new)], SlidingWindow(window) if window else Full())
    done = 0
    for queries, keys in reference._chunks(tile, max_pairs):
        assert queries.start == done
        done = queries.stop
        mask = tile.mask(queries, slice(None))
        assert not mask[:, :, : keys.start].any()
        assert not mask[:, :, keys.stop :].any()
        assert (queries.stop - queries.start) * (keys.stop - keys.start) <= max(max_pairs, keys.stop - keys.start)
    assert done == new


def test_masks_say_what_retention_says() -> None:
    retention = SinksAndWindow(3, 5)
    (tile,) = cut([(11, 9)], retention)
    mask = tile.mask(slice(None), slice(None))[0]
    for i, row in enumerate(mask):
        seen = tile.positions[0][row].tolist()
        assert seen == [p for span in retention.live(11 + i) for p in span] + [11 + i]
