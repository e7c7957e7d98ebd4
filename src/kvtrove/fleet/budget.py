"""How much memory each model takes, and how the cache of each is sized so that as many as possible fit together.

budget | model a: weights, step, reserve + cache | model b: ... + cache | free |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvtrove.config import ConfigError, EngineConfig, parse_tokens
from kvtrove.fleet.models_file import ModelEntry
from kvtrove.plan.activations import StepLimits, activation_bytes
from kvtrove.plan.capacity import DEFAULT_SHARE, readable
from kvtrove.plan.ledger import RESERVE_BYTES
from kvtrove.plan.source import read_model

LEAST_CACHE = 64 * 2**20
"""Bytes of cache below which a model is not worth loading beside others."""
STEP_CONTEXT = 8192
"""Tokens of context that a step is planned for when the entry sets no longest context."""


@dataclass(frozen=True)
class Need:
    """Bytes. base: weights, the largest step, and what a process takes; kv: its cache."""

    base: int
    kv: int

    @property
    def total(self) -> int:
        return self.base + self.kv


def base_bytes(entry: ModelEntry, directory: Path) -> int:
    """What a model takes beside its cache. ModelError when it cannot be read."""
    settings = entry.settings
    weights = str(settings.get("weights", EngineConfig.weights))
    model = read_model(directory, str(settings.get("dtype", "auto")), weights=weights)
    context = min(model.max_position, parse_tokens(settings.get("max_model_len", STEP_CONTEXT)))
    sequences = int(settings.get("max_num_seqs", EngineConfig.max_num_seqs))
    tokens = int(settings.get("max_num_batched_tokens", EngineConfig.max_num_batched_tokens))
    step = activation_bytes(model, StepLimits(tokens, sequences, context, context))
    return model.weight_bytes + step + RESERVE_BYTES


def divide(entries: Sequence[ModelEntry], bases: Mapping[str, int], budget: int) -> dict[str, Need]:
    """A cache for each model that names none: an equal share of what is left when all are loaded, or, when they do not
    fit together, what is free beside it alone. ConfigError naming the number when one does not fit at all.
    """
    given = {entry.name: entry.kv for entry in entries}
    open_ones = [name for name, kv in given.items() if kv is None]
    left = budget - sum(bases.values()) - sum(kv for kv in given.values() if kv is not None)
    share = left // len(open_ones) if open_ones else 0
    needs = {}
    for name, kv in given.items():
        alone = int((budget - bases[name]) * DEFAULT_SHARE)
        size = kv if kv is not None else share if share >= LEAST_CACHE else max(alone, LEAST_CACHE)
        needs[name] = Need(bases[name], size)
        if needs[name].total > budget:
            raise ConfigError(
                f"--models: [{name}] takes {readable(bases[name])} beside its cache of {readable(size)}, and there is "
                f'{readable(budget)}: give it less (kv, weights = "int8"), or --memory {readable(needs[name].total)}'
            )
    return needs
