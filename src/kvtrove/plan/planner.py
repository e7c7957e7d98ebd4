"""Wishes and a model -> a Plan, or a refusal that names the numbers that work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from kvtrove.config import ConfigError, EngineConfig
from kvtrove.plan.capacity import readable
from kvtrove.plan.fitting import MOST_USERS, Fitting, Wishes
from kvtrove.plan.kv import KVBytes, kv_bytes, stored_as
from kvtrove.plan.ledger import Ledger, total_for
from kvtrove.plan.model import PlanModel

MIB = 2**20
COMPARED = ("bf16", "int8", "k=int8+v=int4r", "int4r")
"""Caches that a plan shows beside the chosen one."""
SHORTEST = 256
"""Contexts below this are not worth a line of the frontier."""
USUAL_USERS = EngineConfig.max_num_seqs
"""Nobody asked for more sequences in a step: whatever else fits serves as prefix cache."""


@dataclass(frozen=True)
class FormatChoice:
    """What a recipe buys: the context that the plan's users get, the users who get the plan's context."""

    name: str
    served: bool
    kv: KVBytes
    max_context: int
    max_users: int


@dataclass(frozen=True)
class Plan:
    """users x context tokens always fit; whatever of `num_blocks` they leave serves as prefix cache."""

    fitting: Fitting
    context: int
    users: int
    num_blocks: int

    @property
    def model(self) -> PlanModel:
        return self.fitting.model

    @property
    def wishes(self) -> Wishes:
        return self.fitting.wishes

    @property
    def cache(self) -> str:
        """The recipe."""
        return self.wishes.cache

    @property
    def stored_as(self) -> str:
        return stored_as(self.fitting.cache)

    @cached_property
    def ledger(self) -> Ledger:
        return self.fitting.ledger(self.users, self.context, self.kv_bytes)

    @property
    def kv_bytes(self) -> int:
        """What `--kv` must give: blocks, checkpoints of states, and the seats of all users."""
        return self.num_blocks * self.fitting.cache.block_bytes + self.fitting.seats(self.users)

    @cached_property
    def kv(self) -> KVBytes:
        return kv_bytes(self.fitting.cache)

    @property
    def checkpoint_tokens(self) -> int:
        """Tokens whose K and V are as large as one checkpoint of the running states; 0 without any."""
        return round(self.fitting.cache.mark_bytes / self.kv.per_token) if self.kv.per_token else 0

    @cached_property
    def max_context(self) -> int:
        return self.fitting.longest(self.users)

    @cached_property
    def max_users(self) -> int:
        return self.fitting.most(self.context)

    @cached_property
    def frontier(self) -> list[tuple[int, int]]:
        """(users, largest context) for 1, 2, 4, ... users, until contexts become too short to be of use."""
        points, users = [], 1
        while users <= MOST_USERS and (context := self.fitting.longest(users)) >= min(SHORTEST, self.context):
            points.append((users, context))
            users *= 2
        return points

    @cached_property
    def formats(self) -> list[FormatChoice]:
        """The chosen cache among others that this model can have, with the same memory; each size once."""
        found = [self._choice(self.fitting, self.cache)]
        for name in COMPARED:
            with contextlib.suppress(ConfigError):
                choice = self._choice(Fitting(self.model, replace(self.wishes, cache=name)), name)
                if choice.kv not in [one.kv for one in found]:
                    found.append(choice)
        return found

    def _choice(self, fitting: Fitting, name: str) -> FormatChoice:
        served = self.model.spec is not None
        return FormatChoice(
            name, served, kv_bytes(fitting.cache), fitting.longest(self.users), fitting.most(self.context)
        )


def make_plan(model: PlanModel, wishes: Wishes) -> Plan:
    """The largest context and number of users that fit, where the wishes leave them open.

    Both given: the cache is just large enough for them, or as large as `wishes.kv`. Else it takes all that is left.
    ConfigError when the wishes do not fit, naming what does.
    """
    fitting = Fitting(model, wishes)
    context, users = wishes.context, wishes.users
    if context is not None and context > model.longest_context:
        raise ConfigError(f"context: {context} is more than the {model.longest_context} positions that the model knows")
    shortest = min(SHORTEST, model.max_position)
    if context is None:
        context = max(shortest, fitting.longest(users or 1))
    if users is None:
        users = max(1, min(fitting.most(context), USUAL_USERS))
    if not fitting.fits(users, context):
        raise ConfigError(_refusal(fitting, users, context))
    return Plan(fitting, context, users, _num_blocks(fitting, users, context))


def _num_blocks(fitting: Fitting, users: int, context: int) -> int:
    wishes = fitting.wishes
    if wishes.kv is not None:
        return fitting.blocks_in(wishes.kv, users)
    if wishes.users is not None and wishes.context is not None:
        return fitting.blocks(users, context)
    return fitting.blocks_in(fitting.left_for_kv(users, context) // MIB * MIB, users)  # --kv takes whole MiB


def _refusal(fitting: Fitting, users: int, context: int) -> str:
    needed, left = fitting.kv_needed(users, context), fitting.left_for_kv(users, context)
    wishes = fitting.wishes
    who = "one user" if users == 1 else f"{users} users"
    sentence = f"{who} of {context} tokens {'needs' if users == 1 else 'need'} {readable(needed)} of KV cache"
    if wishes.kv is not None and wishes.kv <= left:
        sentence += f", --kv gives {readable(wishes.kv)}"
    else:
        sentence += (
            f"; beside {readable(fitting.weights)} of weights, {readable(fitting.activations(users, context))} of "
            f"activations and {readable(fitting.reserve)} in reserve, {readable(wishes.memory)} of memory leave "
            f"{readable(left) if left > 0 else 'nothing'}"
        )
    return f"{sentence}: {', or '.join(_ways_out(fitting, users, context))}"


def _ways_out(fitting: Fitting, users: int, context: int) -> Iterator[str]:
    """Every single change that makes it fit."""
    wishes = fitting.wishes
    shorter, fewer = fitting.longest(users), fitting.most(context)
    if shorter >= SHORTEST:
        yield f"--context {shorter} fits"
    if fewer:
        yield f"--users {fewer} fits"
    if (smaller := _smaller(fitting, users, context)) is not None:
        yield f"--cache {smaller} fits"
    needed = fitting.kv_needed(users, context)
    if wishes.kv is not None:
        without = Fitting(fitting.model, replace(wishes, kv=None))
        if without.fits(users, context):
            yield f"--kv {readable(needed)} fits"
            return
    used = fitting.weights + needed + fitting.activations(users, context)
    yield f"--memory {readable(total_for(used) if wishes.reserve is None else used + wishes.reserve)} fits"


def _smaller(fitting: Fitting, users: int, context: int) -> str | None:
    """The first of COMPARED that takes less and fits."""
    for name in COMPARED:
        with contextlib.suppress(ConfigError):
            other = Fitting(fitting.model, replace(fitting.wishes, cache=name))
            if other.cache.block_bytes < fitting.cache.block_bytes and other.fits(users, context):
                return name
    return None
