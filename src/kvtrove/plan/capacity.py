"""How many blocks a memory budget buys, and the longest context they hold."""

from __future__ import annotations

from dataclasses import dataclass

from kvtrove.config import ConfigError
from kvtrove.kv.spec import KVCacheSpec

DEFAULT_SHARE = 0.4
"""Of the memory that is free after the weights: what the cache takes when nobody says how much."""


@dataclass(frozen=True)
class Capacity:
    """num_blocks x block_bytes is the arena; a single sequence may grow to max_model_len tokens."""

    num_blocks: int
    max_model_len: int


def default_kv_bytes(cache: KVCacheSpec, free_bytes: int, users: int, context: int, chunk: int) -> int:
    """A safe share of what is free, but no more than `users` sequences of `context` tokens and a checkpoint can use."""
    most = users * (cache.blocks_for(context, chunk) + cache.mark_rows) * cache.block_bytes
    return max(cache.block_bytes, min(int(free_bytes * DEFAULT_SHARE), most))


def fit(cache: KVCacheSpec, num_blocks: int, context: int, chunk: int, *, required: bool) -> Capacity:
    """The longest context up to `context` that one sequence can have in `num_blocks`.

    ConfigError when not one block is left for a token, or when `required` and `context` does not fit; it names the
    memory that would do and the context that fits.
    """
    longest = max_tokens(cache, num_blocks, context, chunk)
    if longest < 2 or (required and longest < context):
        needed = cache.blocks_for(context, chunk)
        shorter = f"--max-model-len {longest} fits, or " if longest >= 2 else ""
        raise ConfigError(
            f"one sequence of {context} tokens needs {needed} blocks of KV cache "
            f"({readable(needed * cache.block_bytes)}), there are {num_blocks} "
            f"({readable(num_blocks * cache.block_bytes)}): {shorter}--kv {readable(needed * cache.block_bytes)}"
        )
    return Capacity(num_blocks, longest)


def max_tokens(cache: KVCacheSpec, num_blocks: int, context: int, chunk: int) -> int:
    """Longest single sequence of at most `context` tokens in `num_blocks` (binary search: needs grow with length)."""
    low, high = 0, context
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cache.blocks_for(middle, chunk) <= num_blocks else (low, middle - 1)
    return low


def readable(nbytes: int) -> str:
    """``1610612736 -> "1.5GiB"``, rounded up to what `--kv` accepts and is at least as much."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= size:
            tenths = -(-nbytes * 10 // size)
            return f"{tenths / 10:g}{unit}"
    return f"{nbytes}B"
