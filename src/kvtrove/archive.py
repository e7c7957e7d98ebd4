"""Checkpoints that take less room than the cache: sealed rows in another format, and what that costs.

    int8, int4, ...          each token as a cache recipe stores it
    lowrank=0.5+int8         half of the directions that the prefix's keys and values use, in int8 (`low_rank`)

An archive is lossy, and answers from it are not those of the exact cache. So it is restored under a `cache_salt` of its
own, and nobody who does not name it is served from it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvtrove.config import ConfigError
from kvtrove.kv.arena import Arena
from kvtrove.kv.recipe import recipe
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.kv.tiers.checkpoint import Checkpoint, CheckpointError
from kvtrove.kv.tiers.store import ROW_FORMAT
from kvtrove.kv.values import read_values, write_values
from kvtrove.low_rank import Basis, fit

LOW_RANK = re.compile(r"lowrank=(0?\.\d+)\+int8")
Rows = Sequence[bytes | bytearray | memoryview]


@dataclass(frozen=True)
class Price:
    """Bytes of the rows before and after, a basis included. error: of keys and values, root of the mean square,
    relative to their own.
    """

    exact_bytes: int
    nbytes: int
    error: float


def check(spec: KVCacheSpec, word: str) -> None:
    """ConfigError when sequences of this cache cannot be archived so."""
    if spec.states or any(one.format.whole_block or one.format.rope == "pre" for one in spec.layers):
        raise ConfigError(f"archive: {word!r} cannot hold what this cache does; leave it out")
    if (low := LOW_RANK.fullmatch(word)) is not None:
        if float(low[1]) <= 0:
            raise ConfigError(f"archive: {word!r} keeps nothing; lowrank=0.5+int8 keeps half")
        return
    if word.startswith("lowrank"):
        raise ConfigError(f"archive: {word!r} is no share with a format; lowrank=0.5+int8 is one")
    small = recipe(word)(spec)
    if small.check():
        raise ConfigError(f"archive: {word!r} cannot hold what this cache does; leave it out")
    if any(one.format.whole_block or one.first for one in (*small.layers, *spec.layers)) or len(small.groups) != len(
        spec.groups
    ):
        raise ConfigError(f"archive: {word!r} changes more than how a token is stored; int8 and int4 do not")


def archived(checkpoint: Checkpoint, spec: KVCacheSpec, word: str) -> tuple[Checkpoint, Price]:
    """The checkpoint with its sealed rows stored as `word` says. What is no sealed row is left out, so it ends at a
    block's border and nothing of it is unfinished. ConfigError for a word that cannot.
    """
    check(spec, word)
    low = LOW_RANK.fullmatch(word)
    if low is None:
        small = recipe(word)(spec)
        rows, basis, size = _recoded(checkpoint, checkpoint.rows, spec, small), b"", small.block_bytes
    else:
        rows, basis, size = _projected(checkpoint, spec, float(low[1]))
    made = replace(
        checkpoint,
        format_id=f"{ROW_FORMAT}, {word}",
        row_bytes=size,
        num_computed=checkpoint.num_computed // checkpoint.block_size * checkpoint.block_size,
        rows=rows,
        tail=(),
        seat=basis,
        unfinished=None,
    )
    made = replace(made, error=_error(spec, checkpoint, unpacked(made, spec)[0]))
    return made, Price(len(rows) * spec.block_bytes, len(rows) * size + len(basis), made.error)


def unpacked(checkpoint: Checkpoint, spec: KVCacheSpec) -> tuple[Checkpoint, str]:
    """An archive with rows as the cache has them, and its word; any other checkpoint as it is, and "". CheckpointError
    when they do not fit the cache.
    """
    word = checkpoint.format_id.removeprefix(f"{ROW_FORMAT}, ")
    if checkpoint.format_id == word:
        return checkpoint, ""
    try:
        check(spec, word)
    except ConfigError as error:
        raise CheckpointError(f"{error}") from None
    if LOW_RANK.fullmatch(word) is not None:
        rows = _raised(checkpoint, spec)
    else:
        small = recipe(word)(spec)
        if checkpoint.row_bytes != small.block_bytes:
            raise CheckpointError("its rows are not of the size that its format has")
        rows = _recoded(checkpoint, checkpoint.rows, small, spec)
    return replace(checkpoint, format_id=ROW_FORMAT, row_bytes=spec.block_bytes, rows=rows, seat=b""), word


# ---- rows ----


def _arena(spec: KVCacheSpec, rows: Rows) -> Arena:
    arena = Arena(spec, max(1, len(rows)))
    for i, row in enumerate(rows):
        arena.rows[i] = torch.frombuffer(bytearray(row), dtype=torch.uint8)
    return arena


def _content(arena: Arena, number: int) -> list[memoryview]:
    return [row.data for row in arena.rows[:number].numpy()]


def _layers(checkpoint: Checkpoint, spec: KVCacheSpec) -> Iterator[tuple[int, LayerKV, list[int]]]:
    """Every group and layer that stores something, and the rows of the group, where there are any."""
    for group in spec.groups:
        mine = [i for i, (number, _) in enumerate(checkpoint.keys) if number == group.index]
        for layer in group.layers if mine else ():
            yield group.index, layer, mine


def _recoded(checkpoint: Checkpoint, rows: Rows, source: KVCacheSpec, target: KVCacheSpec) -> list[memoryview]:
    """The rows in another format."""
    old, new = _arena(source, rows), Arena(target, max(1, len(rows)))
    for _, layer, mine in _layers(checkpoint, source):
        k, v = (x.to(getattr(torch, source.tail_dtype)) for x in read_values(old, layer.layer, mine))
        write_values(new, layer.layer, mine, k, v)
    return _content(new, len(rows))


def _error(spec: KVCacheSpec, exact: Checkpoint, other: Checkpoint) -> float:
    """How far keys and values are off: root of the mean square, relative to their own."""
    a, b = _arena(spec, exact.rows), _arena(spec, other.rows)
    wrong = right = 0.0
    for _, layer, mine in _layers(exact, spec):
        for x, y in zip(read_values(a, layer.layer, mine), read_values(b, layer.layer, mine), strict=True):
            wrong += float((x.float() - y.float()).square().sum())
            right += float(x.float().square().sum())
    return (wrong / right) ** 0.5 if right else 0.0


# ---- low rank: | layer 0: k | layer 0: v | layer 1: k | ... |, int8 [block_size, rank] each ----


def _projected(checkpoint: Checkpoint, spec: KVCacheSpec, share: float) -> tuple[list[memoryview], bytes, int]:
    """Rows of coefficients, the bases that read them, and the bytes of a row."""
    arena = _arena(spec, checkpoint.rows)
    sides: list[tuple[int, list[int], Tensor]] = []  # group, rows, vectors
    for group, layer, mine in _layers(checkpoint, spec):
        values = dict(zip("kv", read_values(arena, layer.layer, mine), strict=True))
        sides += [(group, mine, values[codec.side].float().flatten(1)) for codec in layer.format.sides]
    bases = fit([x for _, _, x in sides], share)
    used: Counter[int] = Counter()
    for (group, _, _), basis in zip(sides, bases, strict=True):
        used[group] += spec.block_size * basis.rank
    rows = torch.zeros(len(checkpoint.rows), max(used.values(), default=0), dtype=torch.int8)
    at: Counter[int] = Counter()
    for (group, mine, x), basis in zip(sides, bases, strict=True):
        first, nbytes = at[group], spec.block_size * basis.rank
        rows[mine, first : first + nbytes] = basis.encode(x).view(len(mine), nbytes)
        at[group] += nbytes
    content = rows.view(torch.uint8).numpy()
    return [row.data for row in content], b"".join(basis.to_bytes() for basis in bases), rows.shape[1]


def _raised(checkpoint: Checkpoint, spec: KVCacheSpec) -> list[memoryview]:
    """Rows as the cache has them, of rows of coefficients."""
    codes = torch.stack([torch.frombuffer(bytearray(row), dtype=torch.int8) for row in checkpoint.rows])
    new, left = Arena(spec, len(codes)), memoryview(checkpoint.seat)
    at: Counter[int] = Counter()
    for group, layer, mine in _layers(checkpoint, spec):
        tokens = len(mine) * spec.block_size
        values = {
            "k": torch.zeros(tokens, layer.heads, layer.k_dim),
            "v": torch.zeros(tokens, layer.heads, layer.v_dim),
        }
        for codec in layer.format.sides:
            like = values[codec.side]
            try:
                basis, left = Basis.from_bytes(left, like[0].numel())
            except ValueError as error:
                raise CheckpointError(f"its rows cannot be read: {error}") from None
            first, nbytes = at[group], spec.block_size * basis.rank
            if first + nbytes > codes.shape[1]:
                raise CheckpointError("its rows are shorter than its basis says")
            mine_codes = codes[mine, first : first + nbytes].reshape(tokens, basis.rank)
            values[codec.side] = basis.decode(mine_codes).view_as(like)
            at[group] += nbytes
        k, v = (values[side].to(getattr(torch, spec.tail_dtype)) for side in "kv")
        write_values(new, layer.layer, mine, k, v)
    if left:
        raise CheckpointError("more lies behind its bases than they take")
    return _content(new, len(codes))
