"""Starting an engine: the cache takes what it was told, or a safe share of what is free, and the context follows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvtrove.config import ConfigError
from kvtrove.kv.formats.calibration import calibration_bytes
from kvtrove.kv.spec import KVCacheSpec
from kvtrove.plan.activations import StepLimits, activation_bytes
from kvtrove.plan.capacity import Capacity, default_kv_bytes, fit, max_tokens, readable
from kvtrove.plan.gathering import gathering_bytes
from kvtrove.plan.ledger import Ledger, reserve_bytes
from kvtrove.plan.model import PlanModel

MIB = 2**20


@dataclass(frozen=True)
class StartSettings:
    """What the engine was started with. kv: bytes, None for a safe share. max_model_len: None takes what fits.

    num_seats: seats that are in use at once at most, None for one a sequence.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    kv: int | None = None
    num_blocks: int | None = None
    max_model_len: int | None = None
    num_seats: int | None = None

    def seats(self, cache: KVCacheSpec) -> int:
        """Bytes that sequences take beside blocks."""
        return cache.seat_bytes * (self.max_num_seqs if self.num_seats is None else self.num_seats)


def plan_start(model: PlanModel, cache: KVCacheSpec, free: int, settings: StartSettings) -> tuple[Capacity, Ledger]:
    """Blocks and context for an engine that has `free` bytes, before it loads anything.

    ConfigError when weights, a step and one sequence do not fit together; it names the setting and the value that do.
    """
    context = settings.max_model_len or model.max_position
    if context > model.longest_context:
        raise ConfigError(
            f"max_model_len: {context} is more than the {model.longest_context} positions the model knows"
        )
    chunk, reserve = settings.max_num_batched_tokens, reserve_bytes(free)
    beside = calibration_bytes(cache)
    weights = model.weight_bytes + beside
    seats, step = settings.seats(cache), _step_bytes(model, cache, settings, min(context, chunk), None)
    _refuse_too_many_seats(cache, settings, free - weights - reserve - step)
    if settings.num_blocks is not None:
        num_blocks = settings.num_blocks
    else:
        left = free - weights - reserve - step - seats
        size = _kv_bytes(cache, left, context, _without(seats, cache, settings))
        num_blocks = size // cache.block_bytes
        context = _context(model, cache, free - beside - reserve - seats, num_blocks, context, settings)
    capacity = fit(cache, num_blocks, context, chunk, required=settings.max_model_len is not None)
    kv = num_blocks * cache.block_bytes + seats
    activations = _step_bytes(model, cache, settings, capacity.max_model_len, num_blocks * cache.block_size)
    return capacity, Ledger(free, weights, kv, activations, reserve, seats=seats)


def _refuse_too_many_seats(cache: KVCacheSpec, settings: StartSettings, room: int) -> None:
    """Running states of many sequences can be larger than all the rest of a cache."""
    room = room if settings.kv is None else min(room, settings.kv)
    seats = settings.seats(cache)
    if cache.mark_bytes and settings.num_blocks is None and 0 < room < 2 * seats:
        fitting = max(1, room // 2 * settings.max_num_seqs // seats)
        raise ConfigError(
            f"max_num_seqs: {settings.max_num_seqs} sequences may keep running states of "
            f"{readable(cache.mark_bytes)} each, {readable(seats)} of the {readable(room)} that the cache may have: "
            f"--max-num-seqs {fitting} leaves half of it to what is cached"
        )


def settle(capacity: Capacity, ledger: Ledger, cache: KVCacheSpec, settings: StartSettings) -> tuple[Capacity, Ledger]:
    """The start after a warm-up: a cache that nobody gave a size makes room for what the step took beyond the plan.

    ledger: with measured activations. ConfigError when a size that was given does not fit beside them, or nothing does;
    it names the one that does. A number of blocks is taken as it is.
    """
    if ledger.free >= 0 or settings.num_blocks is not None:
        return capacity, ledger
    left, chunk = ledger.kv + ledger.free - ledger.seats, settings.max_num_batched_tokens
    if settings.kv is not None or left < cache.block_bytes:
        size = f"{left // MIB}MiB" if left >= 16 * MIB else f"{left // 1024}KiB"
        way_out = f"--kv {size} fits, or " if left // 1024 * 1024 >= cache.block_bytes else ""
        raise ConfigError(
            f"kv: a step of {chunk} tokens was measured to take {readable(ledger.activations)}, so "
            f"{readable(ledger.kv)} of cache do not fit: {way_out}lower max_num_batched_tokens or max_num_seqs, or "
            "free some memory"
        )
    num_blocks = left // cache.block_bytes
    smaller = fit(cache, num_blocks, capacity.max_model_len, chunk, required=settings.max_model_len is not None)
    return smaller, replace(ledger, kv=num_blocks * cache.block_bytes + ledger.seats)


def _without(seats: int, cache: KVCacheSpec, settings: StartSettings) -> StartSettings:
    """Settings whose `kv` is what the seats leave for blocks."""
    if settings.kv is None or not seats:
        return settings
    if settings.kv < seats + cache.block_bytes:
        raise ConfigError(
            f"kv: {readable(settings.kv)} does not hold what {settings.max_num_seqs} sequences need beside blocks, "
            f"{readable(seats)}, and a block beside them: --kv {readable(seats + cache.block_bytes)} or a smaller "
            "--max-num-seqs"
        )
    return replace(settings, kv=settings.kv - seats)


def _step_bytes(model: PlanModel, cache: KVCacheSpec, settings: StartSettings, context: int, cached: int | None) -> int:
    """Of the largest step, or of a compaction before it, if that is more."""
    tokens = settings.max_num_batched_tokens
    step = activation_bytes(model, StepLimits(tokens, settings.max_num_seqs, context, cached))
    return max(step, gathering_bytes(cache, model.num_heads, context))


def _kv_bytes(cache: KVCacheSpec, left: int, context: int, settings: StartSettings) -> int:
    """left: bytes beside weights, reserve and a step without a long context."""
    if settings.kv is not None:
        if settings.kv > left:
            raise ConfigError(
                f"kv: {readable(settings.kv)} is more than what is free beside weights, a step of "
                f"{settings.max_num_batched_tokens} tokens and a reserve; "
                + (
                    f"{readable(left)} fits"
                    if left >= cache.block_bytes
                    else "free some memory or take a smaller model"
                )
            )
        return settings.kv
    if left < cache.block_bytes:
        missing = readable(cache.block_bytes - left)
        raise ConfigError(
            f"kv: weights, a step of {settings.max_num_batched_tokens} tokens for {settings.max_num_seqs} sequences "
            f"and a reserve leave {missing} too little for a cache: lower max_num_batched_tokens or max_num_seqs, "
            "or free some memory"
        )
    return default_kv_bytes(cache, left, settings.max_num_seqs, context, settings.max_num_batched_tokens)


def _context(
    model: PlanModel, cache: KVCacheSpec, usable: int, num_blocks: int, context: int, settings: StartSettings
) -> int:
    """The longest context whose attention also finds its working memory; a wished one is not shortened but refused."""
    left = usable - model.weight_bytes - num_blocks * cache.block_bytes

    def works(length: int) -> bool:
        return _step_bytes(model, cache, settings, length, num_blocks * cache.block_size) <= left

    longest = max_tokens(cache, num_blocks, context, settings.max_num_batched_tokens)
    if longest < 2 or works(longest):
        return context
    low, high = 1, longest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if works(middle) else (low, middle)
    if settings.max_model_len is not None:
        needed = readable(_step_bytes(model, cache, settings, context, None))
        raise ConfigError(
            f"max_model_len: a step over {context} tokens needs {needed} "
            f"beside weights and cache, {readable(max(1, left))} is free: --max-model-len {low} fits, or a smaller --kv"
        )
    return low
