"""Where the memory went: weights, KV cache by group and format, reserve; computed on the engine's thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from kvtrove.plan.parameters import count_parameters
from kvtrove.plan.process import resident_bytes

if TYPE_CHECKING:
    from kvtrove.engine import Engine
    from kvtrove.kv.groups import KVGroup
    from kvtrove.kv.spec import KVCacheSpec
    from kvtrove.kv.tiers.store import TierFigures


class GroupMemory(TypedDict):
    """Layers that share block tables. bytes_per_block: what their keys and values take of a block's row; the row is as
    long as the largest group's, the rest of it is padding_per_block. blocks, tokens: held now by running requests.
    """

    index: int
    layers: list[int]
    retention: str
    formats: list[str]
    bytes_per_block: int
    padding_per_block: int


class KVMemory(TypedDict):
    """Bytes of the whole cache, and its blocks: used by requests, cached (reusable) or free."""

    bytes: int
    block_size: int
    block_bytes: int
    num_blocks: int
    used_blocks: int
    cached_blocks: int
    free_blocks: int
    max_tokens: int
    groups: list[GroupMemory]


class DeviceMemory(TypedDict):
    """Bytes on one device. available: what the system could still give; null where nobody knows it."""

    device: str
    model: str
    dtype: str
    weights: int
    kv_cache: KVMemory
    available: int | None


class ProcessMemory(TypedDict):
    """Bytes of RAM. resident: held now; null where the system does not say. planned: the most that the ledger expects,
    once every block of the cache has been used; planned_at_rest: the same while no step runs. Both are null without a
    warm-up, which measures where they begin.
    """

    resident: int | None
    planned: int | None
    planned_at_rest: int | None


class TierMemory(TypedDict):
    """A tier below the pool, now. hits, misses: rows asked of it. notices: faults that last."""

    tier: str
    rows: int
    bytes: int
    budget: int
    hits: int
    misses: int
    bytes_read: int
    bytes_written: int
    errors: dict[str, int]
    notices: list[str]


class MemoryReport(TypedDict):
    """tiers: only of an engine that has some."""

    process: ProcessMemory
    devices: list[DeviceMemory]
    tiers: NotRequired[list[TierMemory]]


def memory_report(engine: Engine) -> MemoryReport:
    runner, stats = engine.runner, engine.kv.stats()
    cache, arena = runner.cache, runner.arena
    precision = runner.model.precision
    kv: KVMemory = {
        "bytes": arena.nbytes,
        "block_size": cache.block_size,
        "block_bytes": cache.block_bytes,
        "num_blocks": stats.num_blocks,
        "used_blocks": stats.used,
        "cached_blocks": stats.cached,
        "free_blocks": stats.free,
        "max_tokens": engine.max_model_len,
        "groups": [_group(cache, group) for group in cache.groups],
    }
    device: DeviceMemory = {
        "device": arena.device,
        "model": engine.spec.architecture,
        "dtype": str(precision),
        "weights": count_parameters(engine.spec).nbytes(precision),
        "kv_cache": kv,
        "available": _free_bytes(arena.device),
    }
    ledger = engine.ledger if engine.ledger.process else None
    process: ProcessMemory = {
        "resident": resident_bytes(),
        "planned": None if ledger is None else ledger.peak,
        "planned_at_rest": None if ledger is None else ledger.at_rest,
    }
    report: MemoryReport = {"process": process, "devices": [device]}
    if engine.tiering.store is not None:
        report["tiers"] = [_tier(figures) for figures in engine.tiering.store.figures()]
    return report


def _tier(figures: TierFigures) -> TierMemory:
    return {
        "tier": figures.name,
        "rows": figures.entries,
        "bytes": figures.nbytes,
        "budget": figures.budget,
        "hits": figures.hits,
        "misses": figures.misses,
        "bytes_read": figures.bytes_read,
        "bytes_written": figures.bytes_written,
        "errors": dict(figures.errors),
        "notices": list(figures.notices),
    }


def _group(cache: KVCacheSpec, group: KVGroup) -> GroupMemory:
    return {
        "index": group.index,
        "layers": [layer.layer for layer in group.layers],
        "retention": repr(group.retention),
        "formats": sorted({repr(layer.format) for layer in group.layers}),
        "bytes_per_block": group.used_bytes,
        "padding_per_block": cache.block_bytes - group.used_bytes,
    }


def _free_bytes(device: str) -> int | None:
    """What is free on the device beside all this."""
    if device == "cpu":
        from kvtrove.plan.memory import available_bytes

        return available_bytes()
    import torch

    free: Any = torch.cuda.mem_get_info(torch.device(device))[0]
    return int(free)
