"""What is simulated."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvtrove.config import EVICTION, ConfigError, nearest
from kvtrove.kv.formats.dense import dense
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.plan.cost import CostModel, FittedCost
from kvtrove.plan.hardware import StepFit
from kvtrove.scheduler.scheduler import SchedulerLimits

ROUTERS = ("round-robin", "prefix")

REFERENCE_STEP = StepFit(fixed=4.8e-3, per_token=1.62e-5, per_cached_token=3.9e-8, per_pair=5.3e-10)
REFERENCE = "Llama-3.1-8B in bfloat16 on an H100, by its datasheet"
"""What a step costs when nobody says otherwise, and whose it is."""

INSTANT = FittedCost(StepFit(fixed=0.0, per_token=0.0, per_cached_token=0.0, per_pair=0.0))
"""Steps take no time, so that requests hold their blocks for a moment: what the cache alone is worth."""


def one_layer(block_size: int) -> KVCacheSpec:
    """A cache in which a block is a block: the geometry of a model is not needed to count tokens."""
    return KVCacheSpec((LayerKV(0, 1, 1, 1, dense("float16")),), block_size)


@dataclass(frozen=True)
class SimulationSettings:
    """num_blocks: of each replica; None never runs out. cache: one layer of full attention when left out.

    closed: in a session, the next request comes `think_time` after the answer before it, not when the trace says.
    users: sessions that run at once in closed mode; the others wait for one to end. None starts them as the trace does.
    speed: factor on the rate of arrivals. fast_forward: let runs of equal decode steps pass at once (same results).
    """

    block_size: int
    num_blocks: int | None
    cost: CostModel = field(default_factory=lambda: FittedCost(REFERENCE_STEP))
    limits: SchedulerLimits = field(default_factory=SchedulerLimits)
    cache: KVCacheSpec | None = None
    policy: str = "lru"
    replicas: int = 1
    router: str = "round-robin"
    closed: bool = False
    users: int | None = None
    speed: float = 1.0
    fast_forward: bool = True

    def __post_init__(self) -> None:
        for name, value, known in (("policy", self.policy, EVICTION), ("router", self.router, ROUTERS)):
            if value not in known:
                raise ConfigError(f"{name}: {value!r} is not one of {', '.join(known)}{nearest(value, known)}")
        for name, number in (("replicas", self.replicas), ("users", self.users), ("num_blocks", self.num_blocks)):
            if number is not None and number < 1:
                raise ConfigError(f"{name}: {number} must be at least 1")
        if not 0 < self.speed < float("inf"):
            raise ConfigError(f"speed: {self.speed} must be above 0")

    @property
    def kv_tokens(self) -> int | None:
        """Tokens that a replica's cache holds when all its layers keep every token."""
        return None if self.num_blocks is None else self.num_blocks * self.block_size
