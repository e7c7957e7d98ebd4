"""The engine's side of the tiers: opens them, keeps saving while nothing runs, and sleeps until they have news."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kvtrove.config import EngineConfig
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.spec import KVCacheSpec
from kvtrove.kv.tiers.spec import Settings, parse_tier
from kvtrove.kv.tiers.stack import Tiers, open_tiers
from kvtrove.kv.tiers.store import ROW_FORMAT, TierFigures

if TYPE_CHECKING:
    from kvtrove.runner.rows import Rows

LONGEST_REST = 0.05
"""Seconds after which tiers are asked again, so that overdue operations end."""
FLUSH_SECONDS = 10.0
FIGURES_AGE = 1.0


def wanted_tiers(config: EngineConfig) -> list[Settings]:
    """Of the settings `tier` and `kv_dir`. ConfigError names what is wrong with one."""
    return [parse_tier(text) for text in (*config.tier, *([f"disk:{config.kv_dir}"] if config.kv_dir else []))]


class Tiering:
    """Of one engine; called on its thread. Without tiers it does nothing."""

    def __init__(self, wanted: Sequence[Settings], spec: KVCacheSpec) -> None:
        self.store: Tiers | None = open_tiers(wanted, ROW_FORMAT, spec.fingerprint) if wanted else None
        self._figures: Sequence[TierFigures] = ()
        self._asked = float("-inf")
        self._news = threading.Event()
        self.wake: Callable[[], None] = self._news.set
        """Called by a thread of a tier that has news, to wake who rests elsewhere than in `rest`."""
        if self.store is not None:
            self.store.on_done = lambda: self.wake()

    def tend(self, kv: KVCacheManager, rows: Rows) -> bool:
        """While nothing runs: save what waits to be saved. True while there is something to come back for."""
        if kv.transfers is None:
            return False
        rows.settle(kv)
        return kv.transfers.num_unsaved > 0 or kv.transfers.is_busy

    def figures(self) -> Sequence[TierFigures]:
        """Of every tier, at most FIGURES_AGE seconds old."""
        now = time.monotonic()
        if self.store is not None and now - self._asked > FIGURES_AGE:
            self._figures, self._asked = self.store.figures(), now
        return self._figures

    def rest(self) -> None:
        """Sleep until a tier has news, or for LONGEST_REST."""
        self._news.wait(LONGEST_REST)
        self._news.clear()

    def close(self, kv: KVCacheManager, rows: Rows) -> None:
        """Save what is left, for a bounded time, and let go of the tiers."""
        if self.store is not None:
            end = time.monotonic() + FLUSH_SECONDS
            while self.tend(kv, rows) and time.monotonic() < end:
                self.rest()
            self.store.close()
            self.store = None
