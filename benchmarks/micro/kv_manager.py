"""Cost of the cache's bookkeeping, bytes excluded.

    python benchmarks/micro/kv_manager.py [--json FILE] [--steps 512]

decode: microseconds per sequence and step of allocate(1) + block_ids() + commit(1), for 1, 64 and 1024 sequences and
pools of 10^4, 10^5 and 10^6 blocks. `inside` is the median step, in which no block is filled; `mean` spreads sealing,
publishing and evicting over all steps. Flat in pool size is the claim; the budget is 3 us.

match: microseconds for a prompt of 8192 tokens whose blocks are all cached, none cached, or all keys hashed before.
"""

from __future__ import annotations

import argparse
import statistics
import time
from array import array

from kvtrove.cli.output import write_json
from kvtrove.kv.formats.dense import ECHO
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.retention import Full, Retention, SlidingWindow
from kvtrove.kv.spec import KVCacheSpec, LayerKV

BLOCK, PROMPT, LONG_PROMPT = 32, 64, 8192
POOLS = (10**4, 10**5, 10**6)
KINDS: dict[str, tuple[Retention, ...]] = {"full": (Full(),), "full+window": (Full(), SlidingWindow(500))}


def manager_of(kind: str, num_blocks: int) -> KVCacheManager:
    layers = tuple(LayerKV(i, 1, 1, 1, ECHO, rule) for i, rule in enumerate(KINDS[kind]))
    return KVCacheManager(KVCacheSpec(layers, BLOCK), num_blocks)


def tokens_of(sequence: int, length: int) -> array[int]:
    return array("i", range(sequence * 1000, sequence * 1000 + length))


def used_pool(kind: str, num_blocks: int, busy: int) -> KVCacheManager:
    """A pool that has been full: every block was created, `busy` remain to be used and all others are cached."""
    manager = manager_of(kind, num_blocks)
    filler = manager.open()
    count = (num_blocks - busy) // manager.num_groups * BLOCK
    manager.allocate(filler, count)
    manager.commit(filler, tokens_of(-1, count), count)
    manager.free(filler)
    return manager


def decode(kind: str, num_blocks: int, sequences: int, steps: int) -> dict[str, float]:
    """Microseconds per sequence and step; every block in the pool was used before and new ones are evicted."""
    manager = used_pool(kind, num_blocks, 0)
    running = [(manager.open(), tokens_of(i, PROMPT + steps)) for i in range(sequences)]
    for kv, tokens in running:
        assert manager.allocate(kv, PROMPT), "the pool is too small for this many sequences"
        manager.commit(kv, tokens, PROMPT)
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        for kv, tokens in running:
            manager.allocate(kv, 1)
            kv.block_ids()
            manager.commit(kv, tokens, 1)
        times.append((time.perf_counter() - start) / sequences * 1e6)
    return {"inside": statistics.median(times), "mean": statistics.mean(times)}


def match(kind: str, num_blocks: int) -> dict[str, float]:
    """Microseconds of one match of LONG_PROMPT tokens, the best of several."""
    manager = used_pool(kind, num_blocks, 4 * LONG_PROMPT // BLOCK)
    tokens = tokens_of(1, LONG_PROMPT)
    kv = manager.open()
    manager.allocate(kv, LONG_PROMPT)
    manager.commit(kv, tokens, LONG_PROMPT)
    manager.free(kv)
    found: dict[str, float] = {}
    for name, prompt in (("all_cached", tokens), ("none_cached", tokens_of(2, LONG_PROMPT))):
        times: list[float] = []
        again: list[float] = []
        for _ in range(20):
            kv = manager.open()
            for record in (times, again):
                start = time.perf_counter()
                manager.match(kv, prompt, LONG_PROMPT - 1)
                record.append((time.perf_counter() - start) * 1e6)
            manager.free(kv)
        found |= {name: min(times), f"{name}_hashed_before": min(again)}
    return found


def creation(num_blocks: int) -> float:
    """Microseconds to create a manager."""
    times = []
    for _ in range(10):
        start = time.perf_counter()
        manager_of("full", num_blocks)
        times.append((time.perf_counter() - start) * 1e6)
    return min(times)


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=512, help="decode steps per measurement")
    parser.add_argument("--json", default="-", help="file to write, - for standard output")
    args = parser.parse_args()
    grid = [(kind, num_blocks) for kind in KINDS for num_blocks in POOLS]
    result = {
        "benchmark": "kv_manager",
        "unit": "us",
        "steps": args.steps,
        "decode": [
            {"groups": kind, "num_blocks": blocks, "sequences": n} | rounded(decode(kind, blocks, n, args.steps))
            for kind, blocks in grid
            for n in (1, 64, 1024)
            if n * 2 * -(-(PROMPT + args.steps) // BLOCK) <= blocks
        ],
        "match_8192": [{"groups": kind, "num_blocks": blocks} | rounded(match(kind, blocks)) for kind, blocks in grid],
        "creation": {str(blocks): round(creation(blocks), 1) for blocks in POOLS},
    }
    write_json(result, args.json)


if __name__ == "__main__":
    main()
