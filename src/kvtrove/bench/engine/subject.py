"""What is measured: a model, how it computes and caches, and an engine of it that is just large enough."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from kvtrove.bench.engine.fill import TEMPLATE_BLOCKS
from kvtrove.bench.engine.limits import READ_BYTES
from kvtrove.config import ConfigError, EngineConfig, parse_size
from kvtrove.engine import Engine
from kvtrove.kv.recipe import recipe
from kvtrove.loading import choose_device, free_bytes
from kvtrove.models.loader import Progress
from kvtrove.plan.capacity import readable
from kvtrove.plan.fitting import Fitting, Wishes
from kvtrove.plan.kv import cache_of, stored_as
from kvtrove.plan.model import PlanModel
from kvtrove.plan.source import read_model
from kvtrove.request import SamplingParams

CHUNK = 2048
"""Tokens of a step at most, unless the batch is larger."""


@dataclass(frozen=True)
class Subject:
    """One of model (a checkpoint directory) and random_weights (a config.json).

    weights: "int8" and "int4" quantise the matrices of linear layers. cache: a recipe.

    memory: bytes or "16GiB" that may be used; None is what is free. progress: told while the weights are loaded.
    ConfigError for what cannot be measured.
    """

    model: str | None = None
    random_weights: str | None = None
    dtype: str = "auto"
    weights: str = "auto"
    cache: str = "auto"
    device: str = "auto"
    block_size: int = EngineConfig.block_size
    memory: int | str | None = None
    progress: Progress | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (self.model is None) == (self.random_weights is None):
            raise ConfigError("give one of --model DIR and --random-weights config.json")
        if self.random_weights is not None and not Path(self.random_weights).is_file():
            raise ConfigError(f"random_weights: {self.random_weights} is no file; give the config.json of a model")
        recipe(self.cache)
        if self.memory is not None:
            object.__setattr__(self, "memory", parse_size(self.memory, "memory"))
        self._config()

    def _config(self, **settings: Any) -> EngineConfig:
        return EngineConfig(
            str(self.path),
            load_format="auto" if self.random_weights is None else "dummy",
            dtype=self.dtype,
            weights=self.weights,
            cache=self.cache,
            device=self.device,
            block_size=self.block_size,
            **settings,
        )

    @property
    def path(self) -> Path:
        return Path(self.model or self.random_weights or "")

    @cached_property
    def plan(self) -> PlanModel:
        """The model as far as memory and time depend on it. ModelError when it cannot be read."""
        return read_model(self.path, self.dtype, weights=self.weights)

    def settings(self) -> dict[str, Any]:
        """As results store them: what "auto" stood for, and no more than one of the two models."""
        names = ("model", "random_weights", "block_size", "memory")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return given | {
            "dtype": self.plan.dtype,
            "weights": self.weights,
            "cache": self.cache,
            "stored_as": stored_as(cache_of(self.plan, self.cache, self.block_size)),
            "device": choose_device(self.device),
        }

    def check_context(self, context: int) -> None:
        """ConfigError when the model cannot have such a context."""
        if context < 1:
            raise ConfigError(f"context: {context} must be at least 1")
        if context > self.plan.max_position:
            raise ConfigError(
                f"context: {context} tokens are more than the {self.plan.max_position} positions that the model knows"
            )

    def start(self, batch: int, length: int, context: int | None = None) -> Engine:
        """An engine with room for `batch` sequences of `length` tokens, `context` of which the user asked for.

        ConfigError naming what fits if they do not.
        """
        if batch < 1:
            raise ConfigError(f"batch: {batch} must be at least 1")
        self.check_context(length)
        chunk = max(CHUNK, batch)
        fitting = self._fitting(chunk)
        if not fitting.fits(batch, length):
            raise ConfigError(self._refusal(fitting, batch, length, length - (context or length)))
        groups = len(fitting.cache.groups)
        return Engine(
            self._config(
                num_blocks=fitting.blocks(batch, length) + groups * (batch + TEMPLATE_BLOCKS),
                max_model_len=length,
                max_num_seqs=batch,
                max_num_batched_tokens=chunk,
            ),
            progress=self.progress,
        )

    def _fitting(self, chunk: int) -> Fitting:
        memory = free_bytes(choose_device(self.device)) - READ_BYTES if self.memory is None else int(self.memory)
        wishes = Wishes(memory, cache=self.cache, block_size=self.block_size, max_num_batched_tokens=chunk)
        return Fitting(self.plan, wishes)

    def _refusal(self, fitting: Fitting, batch: int, length: int, spare: int) -> str:
        """spare: tokens of `length` that nobody asked for."""
        left = fitting.left_for_kv(batch, length)
        sentence = (
            f"batch: {batch} sequences of {length} tokens need {readable(fitting.kv_needed(batch, length))} of KV "
            f"cache; beside {readable(fitting.weights)} of weights, activations and a reserve, "
            f"{readable(fitting.wishes.memory)} of memory leave {readable(left) if left > 0 else 'nothing'}"
        )
        if most := fitting.most(length):
            return f"{sentence}: --batch {most} fits"
        longest = fitting.longest(1) - max(0, spare) - self.block_size  # contexts are rounded to blocks
        return f"{sentence}: " + (f"--batch 1 --context {longest} fits" if longest > 0 else "take a smaller model")


def random_prompts(engine: Engine, count: int, length: int, random: Random) -> list[array[int]]:
    """Prompts of `length` random token ids, any two of them different from the first block on."""
    vocab = engine.spec.vocab_size
    return [array("i", random.choices(range(vocab), k=length)) for _ in range(count)]


def greedy(max_tokens: int) -> SamplingParams:
    """Exactly `max_tokens` tokens, and no text."""
    return SamplingParams(
        temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False, output_kind="delta"
    )
