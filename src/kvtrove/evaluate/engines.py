"""The engines that are compared: one cache each, the same weights for all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from kvtrove.engine import Engine
from kvtrove.evaluate.configurations import EXACT, Configuration, configuration, configurations
from kvtrove.evaluate.settings import Settings
from kvtrove.kv.formats import engine_format
from kvtrove.loading import Progress, Variant, choose_precision
from kvtrove.models.cache import cache_spec
from kvtrove.models.config_reader import read_spec
from kvtrove.models.decoder import Model
from kvtrove.models.spec import ModelSpec

SEQUENCES = 4
"""Sequences of full length that each cache holds at once."""


@dataclass(frozen=True)
class Engines:
    """reference: with the exact cache. compared: by the name of the configuration, the exact one included.

    settings: with what depends on the model filled in.
    """

    settings: Settings
    reference: Engine
    compared: dict[str, Engine]

    @classmethod
    def start(cls, settings: Settings, progress: Progress | None = None) -> Engines:
        """Loads the weights once. Raises ModelError or ConfigError."""
        spec = read_spec(Path(settings.model))
        settings = settings.resolved(spec.max_position)
        reference = _start(settings, spec, configuration(EXACT), progress=progress)
        model = reference.runner.model
        compared = {one.name: _start(settings, spec, one, model) for one in configurations(settings.kv)}
        return cls(settings, reference, compared)


def _start(
    settings: Settings,
    spec: ModelSpec,
    configured: Configuration,
    model: Model | None = None,
    progress: Progress | None = None,
) -> Engine:
    """model: the weights, None to load them."""
    longest = max(settings.context or 0, *(settings.lengths or ()))
    config = settings.engine(longest)
    dtype = choose_precision(config, spec).activations  # of the exact cache: K and V as they were computed
    config = replace(config, kv_cache_dtype=dtype)
    cache = configured(cache_spec(spec, engine_format(dtype), config.block_size))
    blocks = SEQUENCES * cache.blocks_for(longest, settings.chunk)
    return Engine(replace(config, num_blocks=blocks), progress=progress, variant=Variant(configured, model))
