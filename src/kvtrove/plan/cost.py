"""How long a step takes: from bandwidth and arithmetic (the roofline), or from measured steps.

roofline    max(weights read / bandwidth, 2 x parameters x tokens / flops)   the matrix products
          + K/V read / bandwidth                                             attention of decodes
          + 4 x heads x head_dim x layers x pairs / flops                    attention of prompts
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kvtrove.kv.spec import KVCacheSpec
from kvtrove.plan.hardware import Machine, StepFit
from kvtrove.plan.kv import sequence_bytes
from kvtrove.plan.model import PlanModel

if TYPE_CHECKING:
    from kvtrove.scheduler.output import ScheduledSequence


@dataclass(slots=True)
class StepWork:
    """tokens: computed. cached_tokens: read by sequences with one new token. pairs: (query, key) of all others.

    sequences: that take part, whatever they compute: each is batched, sampled and told on its own. prompts: those of
    them with more than one new token.
    """

    tokens: int
    cached_tokens: int = 0
    pairs: int = 0
    sequences: int = 0
    prompts: int = 0


def work_of(sequences: Iterable[ScheduledSequence]) -> StepWork:
    """The work of a step. Both the simulator and the calibration count it here, so that they mean the same."""
    work = StepWork(0)
    for s in sequences:
        new = len(s.tokens)
        work.tokens += new
        work.sequences += 1
        if new == 1:
            work.cached_tokens += s.start + 1
        else:
            work.prompts += 1
            work.pairs += new * s.start + new * (new + 1) // 2
    return work


class CostModel(Protocol):
    def seconds(self, work: StepWork) -> float:
        """Duration of a step; 0 tokens take no time."""
        ...


@dataclass(frozen=True)
class FittedCost:
    """A step as measured: linear in its work."""

    fit: StepFit

    def seconds(self, work: StepWork) -> float:
        fit = self.fit
        if not work.tokens:
            return 0.0
        reading = fit.per_cached_token * work.cached_tokens + fit.per_pair * work.pairs
        each = fit.per_sequence * work.sequences + fit.per_prompt * work.prompts
        return fit.fixed + fit.per_token * work.tokens + each + reading


@dataclass(frozen=True)
class RooflineCost:
    """Everything that is read once per step at full bandwidth, everything that is computed at full speed."""

    model: PlanModel
    machine: Machine
    kv_bytes_per_cached_token: float
    pair_flops: float

    @classmethod
    def of(cls, model: PlanModel, machine: Machine, cache: KVCacheSpec, typical_context: int) -> RooflineCost:
        """typical_context: where K/V bytes per token are taken, since windows make them fall with length."""
        per_token = sequence_bytes(cache, typical_context) / typical_context
        pair_flops = sum(2.0 * model.num_heads * (layer.k_dim + layer.v_dim) for layer in model.layers)
        return cls(model, machine, per_token, pair_flops)

    def seconds(self, work: StepWork) -> float:
        if not work.tokens:
            return 0.0
        machine, model = self.machine, self.model
        reading = model.active_weight_bytes(work.tokens) / machine.bandwidth
        computing = 2 * model.active_parameters() * work.tokens / machine.flops
        attention = self.kv_bytes_per_cached_token * work.cached_tokens / machine.bandwidth
        return max(reading, computing) + attention + self.pair_flops * work.pairs / machine.flops


def cost_of(model: PlanModel, machine: Machine, cache: KVCacheSpec, typical_context: int) -> CostModel:
    """Measured steps where the machine has them, the roofline otherwise."""
    if machine.fit is not None:
        return FittedCost(machine.fit)
    return RooflineCost.of(model, machine, cache, typical_context)
