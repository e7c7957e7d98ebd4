"""The cache as people see it in a log."""

from __future__ import annotations

from array import array

from kvtrove.kv.debug import grid, line
from kvtrove.kv.manager import KVCacheManager
from tests.echo import echo_spec


def test_the_grid_shows_every_state_of_a_block() -> None:
    kv = KVCacheManager(echo_spec(4), 70)
    tokens = array("i", range(40))
    gone, stays = kv.open(), kv.open(b"other")
    for sequence, length in ((gone, 8), (stays, 10)):
        kv.allocate(sequence, length)
        kv.commit(sequence, tokens, length)
    kv.fork(stays)
    kv.free(gone)
    first, second = grid(kv).splitlines()
    assert first.split() == ["0", "cc22oo" + "." * 58]
    assert second.split() == ["64", "." * 6]
    assert line(kv) == ("blocks: 4 used, 2 cached, 64 free of 70; hits 0 of 0 tokens; 0 evictions; 2 sequences, 0 pins")


def test_a_large_pool_is_cut() -> None:
    assert grid(KVCacheManager(echo_spec(4), 5000)).splitlines()[-1] == "       and 904 more"
