"""The engines that are compared: caches on the same weights, other weights, other models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from kvtrove.config import ConfigError
from kvtrove.engine import Engine
from kvtrove.evaluate.prefix import PROBES, on_demand
from kvtrove.evaluate.settings import EXACT, Settings
from kvtrove.kv.recipe import recipe
from kvtrove.kv.spec import KVCacheSpec
from kvtrove.loading import Progress, choose_precision
from kvtrove.models.cache import cache_spec
from kvtrove.models.config_reader import read_spec
from kvtrove.models.decoder import Model
from kvtrove.models.spec import ModelSpec

SEQUENCES = 4
"""Sequences of full length that each cache holds at once."""


@dataclass(frozen=True)
class Engines:
    """reference: with the exact cache. compared: by the recipe, `weights=KIND` or `model=PATH`, the exact one included.

    settings: with what depends on the model filled in.
    """

    settings: Settings
    reference: Engine
    compared: dict[str, Engine]

    @classmethod
    def start(cls, settings: Settings, progress: Progress | None = None) -> Engines:
        """Loads weights once, and once more for each other kind and model. Raises ModelError or ConfigError."""
        spec = read_spec(Path(settings.model))
        others = {path: read_spec(Path(path)) for path in settings.models}
        settings = settings.resolved(min(one.max_position for one in (spec, *others.values())))
        reference = _start(settings, spec, EXACT, progress=progress)
        model = reference.runner.model
        names = dict.fromkeys((EXACT,) if settings.fits else (EXACT, *settings.caches))
        compared = {name: _start(settings, spec, name, model) for name in names}
        for kind in settings.weights:
            compared[f"weights={kind}"] = _start(settings, spec, EXACT, progress=progress, weights=kind)
        for path, other in others.items():
            found = _start(replace(settings, model=path), other, EXACT, progress=progress)
            if found.tokenizer.backend.to_str() != reference.tokenizer.backend.to_str():
                raise ConfigError(f"models: {path} has another tokenizer than {settings.model}; give one of its kind")
            compared[f"model={path}"] = found
        return cls(settings, reference, compared)

    @property
    def exact_word(self) -> str:
        """The recipe that stores what the exact cache does."""
        return recipe(self.reference.runner.cache.tail_dtype).name

    def cache(self, name: str) -> KVCacheSpec:
        return recipe(name)(self.reference.runner.cache)

    def started(self, name: str) -> Engine:
        """One more, with the weights of the others. name: a recipe."""
        return _start(self.settings, self.reference.spec, name, self.reference.runner.model)


def _start(
    settings: Settings,
    spec: ModelSpec,
    cache: str,
    model: Model | None = None,
    progress: Progress | None = None,
    weights: str = "auto",
) -> Engine:
    """cache: a recipe. model: the weights, None to load them as `weights` says."""
    longest = max(settings.context or 0, *(settings.lengths or ()))
    config = settings.engine(longest, spec.dtype, weights)
    # The exact cache stores K and V as they were computed.
    exact = cache_spec(spec, choose_precision(config, spec).activations, config.block_size)
    if on_demand(recipe(cache).compactor):
        most = min(spec.max_position, longest + PROBES)
        config = replace(config, enable_prefix_caching=True, max_model_len=most)
        longest = most
    blocks = SEQUENCES * recipe(cache)(exact).blocks_for(longest, settings.chunk)
    return Engine(replace(config, cache=cache, num_blocks=blocks), progress=progress, exact=exact, model=model)
