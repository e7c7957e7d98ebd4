"""Which (users, context) fit into a memory, for one model and one cache.

memory | weights ........ | KV: users x blocks of `context` tokens ........ | activations | reserve | free |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvtrove.config import EngineConfig
from kvtrove.kv.formats.calibration import calibration_bytes
from kvtrove.plan.activations import StepLimits, activation_bytes
from kvtrove.plan.gathering import gathering_bytes
from kvtrove.plan.kv import cache_of
from kvtrove.plan.ledger import Ledger, reserve_bytes
from kvtrove.plan.model import PlanModel

MOST_USERS = 1 << 16


@dataclass(frozen=True)
class Wishes:
    """What the user said. memory: bytes of one device (or of the host). None: the planner chooses.

    cache: a recipe. kv: bytes for the cache. context: prompt and answer of one user together. reserve: bytes that
    stay unused. measured_activation_bytes: of a warm-up, instead of the formula's.
    """

    memory: int
    kv: int | None = None
    context: int | None = None
    users: int | None = None
    cache: str = "auto"
    block_size: int = EngineConfig.block_size
    max_num_batched_tokens: int = EngineConfig.max_num_batched_tokens
    tensor_parallel: int = 1
    reserve: int | None = None
    measured_activation_bytes: int | None = None


class Fitting:
    """Needs of one rank. All searches rely on needs that grow with users and with context."""

    def __init__(self, model: PlanModel, wishes: Wishes) -> None:
        """ConfigError when the cache that is wished for cannot be that of the model."""
        self.model, self.wishes = model, wishes
        self.cache = cache_of(model, wishes.cache, wishes.block_size, wishes.tensor_parallel)
        self.weights = _weights_of_a_rank(model, wishes.tensor_parallel) + calibration_bytes(self.cache)
        self.reserve = reserve_bytes(wishes.memory) if wishes.reserve is None else wishes.reserve

    @property
    def bound(self) -> int:
        """No context is longer: what the model is made for, or the longer one that was asked for."""
        return max(self.model.max_position, self.wishes.context or 0)

    def blocks(self, users: int, context: int) -> int:
        """With room for a checkpoint of each, where layers have running states."""
        return users * (self.cache.blocks_for(context, self.wishes.max_num_batched_tokens) + self.cache.mark_rows)

    def kv_needed(self, users: int, context: int) -> int:
        return self.blocks(users, context) * self.cache.block_bytes + self.seats(users)

    def seats(self, users: int) -> int:
        """Bytes that sequences take beside blocks."""
        return users * self.cache.seat_bytes

    def blocks_in(self, kv: int, users: int) -> int:
        """Blocks of a cache of `kv` bytes beside the seats."""
        return (kv - self.seats(users)) // self.cache.block_bytes

    def activations(self, users: int, context: int) -> int:
        if self.wishes.measured_activation_bytes is not None:
            return self.wishes.measured_activation_bytes
        tokens = max(users, min(self.wishes.max_num_batched_tokens, users * context))
        limits = StepLimits(tokens, users, context)
        step = activation_bytes(self.model, limits, self.wishes.tensor_parallel, self.wishes.block_size)
        return max(step, gathering_bytes(self.cache, self.model.num_heads, context))

    def left_for_kv(self, users: int, context: int) -> int:
        """Bytes that weights, activations and reserve leave; negative by what is missing."""
        return self.wishes.memory - self.weights - self.activations(users, context) - self.reserve

    def fits(self, users: int, context: int) -> bool:
        needed, left = self.kv_needed(users, context), self.left_for_kv(users, context)
        return needed <= left if self.wishes.kv is None else needed <= self.wishes.kv <= left

    def longest(self, users: int) -> int:
        """Largest context that `users` users can have at once, 0 when none."""
        return last(lambda context: self.fits(users, context), self.bound)

    def most(self, context: int) -> int:
        """Users that can have `context` tokens each at once, 0 when none."""
        return last(lambda users: self.fits(users, context), MOST_USERS)

    def ledger(self, users: int, context: int, kv: int) -> Ledger:
        measured = self.wishes.measured_activation_bytes is not None
        activations, seats = self.activations(users, context), self.seats(users)
        return Ledger(self.wishes.memory, self.weights, kv, activations, self.reserve, measured, seats=seats)


def _weights_of_a_rank(model: PlanModel, ranks: int) -> int:
    whole = model.weight_bytes * model.parameters.replicated // model.parameters.total if ranks > 1 else 0
    return whole + -(-(model.weight_bytes - whole) // ranks)


def last(fits: Callable[[int], bool], most: int) -> int:
    """Largest n of 1..most for which fits(n), 0 when there is none; if n does not fit, nothing larger does."""
    low, high = 0, 1
    while high <= most and fits(high):  # what fits is far below `most` as a rule
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
