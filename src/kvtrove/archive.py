"""Checkpoints that take less room than the cache: sealed rows in another format, and what that costs.

An archive is lossy, and answers from it are not those of the exact cache. So it is restored under a `cache_salt` of its
own, and nobody who does not name it is served from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kvtrove.config import ConfigError
from kvtrove.kv.arena import Arena
from kvtrove.kv.recipe import recipe
from kvtrove.kv.spec import KVCacheSpec
from kvtrove.kv.tiers.checkpoint import Checkpoint
from kvtrove.kv.tiers.store import ROW_FORMAT
from kvtrove.kv.values import read_values, write_values


@dataclass(frozen=True)
class Price:
    """Bytes of the rows before and after. error: of keys and values, root of the mean square, relative to their own."""

    exact_bytes: int
    nbytes: int
    error: float


def archived(checkpoint: Checkpoint, spec: KVCacheSpec, word: str) -> tuple[Checkpoint, Price]:
    """The checkpoint with its sealed rows as the cache recipe `word` ("int8") stores them. What is no sealed row is
    left out, so it ends at a block's border and nothing of it is unfinished. ConfigError for a recipe that cannot.
    """
    small = _small(spec, word)
    rows, error = _converted(checkpoint, checkpoint.rows, spec, small)
    full = checkpoint.num_computed // checkpoint.block_size * checkpoint.block_size
    made = replace(
        checkpoint,
        format_id=f"{ROW_FORMAT}, {word}",
        row_bytes=small.block_bytes,
        num_computed=full,
        rows=rows,
        tail=(),
        seat=b"",
        unfinished=None,
    )
    return made, Price(len(rows) * spec.block_bytes, len(rows) * small.block_bytes, error)


def unpacked(checkpoint: Checkpoint, spec: KVCacheSpec) -> tuple[Checkpoint, str]:
    """An archive with rows as the cache has them, and its recipe; any other checkpoint as it is, and "" """
    word = checkpoint.format_id.removeprefix(f"{ROW_FORMAT}, ")
    if checkpoint.format_id == word:
        return checkpoint, ""
    rows, _ = _converted(checkpoint, checkpoint.rows, _small(spec, word), spec)
    return replace(checkpoint, format_id=ROW_FORMAT, row_bytes=spec.block_bytes, rows=rows), word


def _small(spec: KVCacheSpec, word: str) -> KVCacheSpec:
    small = recipe(word)(spec)
    if small.check() or spec.states or any(one.format.whole_block or one.format.rope == "pre" for one in spec.layers):
        raise ConfigError(f"archive: {word!r} cannot hold what this cache does; leave it out")
    if any(one.format.whole_block or one.first for one in (*small.layers, *spec.layers)) or len(small.groups) != len(
        spec.groups
    ):
        raise ConfigError(f"archive: {word!r} changes more than how a token is stored; int8 and int4 do not")
    return small


def _converted(
    checkpoint: Checkpoint, rows: Sequence[Any], source: KVCacheSpec, target: KVCacheSpec
) -> tuple[list[memoryview], float]:
    """The rows in the other format, group by group, and the relative error of the keys and values in them."""
    old, new = Arena(source, max(1, len(rows))), Arena(target, max(1, len(rows)))
    for i, row in enumerate(rows):
        old.rows[i] = torch.frombuffer(bytearray(row), dtype=torch.uint8)
    wrong = right = 0.0
    for group in source.groups:
        mine = [i for i, (number, _) in enumerate(checkpoint.keys) if number == group.index]
        for layer in group.layers if mine else ():
            exact = read_values(old, layer.layer, mine)
            k, v = (x.to(getattr(torch, source.tail_dtype)) for x in exact)
            write_values(new, layer.layer, mine, k, v)
            for a, b in zip(exact, read_values(new, layer.layer, mine), strict=True):
                wrong += float((a.float() - b.float()).square().sum())
                right += float(a.float().square().sum())
    content = new.rows[: len(rows)].numpy()
    return [row.data for row in content], (wrong / right) ** 0.5 if right else 0.0
