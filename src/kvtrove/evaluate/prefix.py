"""Caches that compact prefixes on demand are asked behind a compacted one, as their users do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kvtrove.engine import Engine
from kvtrove.kv.compaction.compactor import Compactor
from kvtrove.request import RequestError

PROBES = 640
"""Tokens of context beside the longest prompt, in which a model repeats a part of it."""


def on_demand(compactor: Compactor | None) -> bool:
    return compactor is not None and compactor.on_demand


@contextmanager
def compacted(engine: Engine, prefix: Sequence[int]) -> Iterator[None]:
    """Requests that begin with `prefix` read what is left of it; nothing of it is cached afterwards.

    Nothing happens with another cache, or to a prefix that is too short.
    """
    if not on_demand(engine.runner.cache.compactor):
        yield
        return
    try:
        done = engine.compact(prefix)
    except RequestError:
        done = None
    while done is not None and not done.done():
        engine.step()
    if done is not None:
        done.result()
    try:
        yield
    finally:
        for pin in engine.pins():
            engine.unpin(pin.id)
        engine.reset_prefix_cache()


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens with which both begin."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
