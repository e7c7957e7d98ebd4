"""How fast does an engine compute with a cache? One round over all configurations; the median of rounds counts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvtrove.engine import Engine
from kvtrove.evaluate.prefix import compacted, on_demand
from kvtrove.request import RequestMetrics, SamplingParams

DECODED = 32
"""Tokens generated one by one after the prompt."""


@dataclass(frozen=True)
class SpeedRound:
    """One request of a prompt and DECODED tokens on each engine in turn, so that a slow moment meets all alike."""

    index: int
    prompt: list[int]

    kind = "speed"

    @property
    def key(self) -> str:
        return f"speed {self.index} {len(self.prompt)}"

    def run(self, engines: Mapping[str, Engine]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Per configuration {"prefill", "decode"} in tokens per second."""
        params = SamplingParams(
            temperature=0, max_tokens=DECODED + 1, ignore_eos=True, detokenize=False, output_kind="final_only"
        )
        for name, engine in engines.items():
            begun, first, ended = self._once(engine, params)
            prefill = len(self.prompt) / (first - begun)
            if on_demand(engine.runner.cache.compactor):
                with compacted(engine, self.prompt[:-1]):
                    _, first, ended = self._once(engine, params)
            yield name, {"prefill": prefill, "decode": DECODED / (ended - first)}

    def _once(self, engine: Engine, params: SamplingParams) -> tuple[float, float, float]:
        engine.add("speed", self.prompt, params)
        outputs = engine.step()
        while not outputs:
            outputs = engine.step()
        return _times(outputs[0].metrics)


def speed_rounds(rounds: int, text: list[int], context: int) -> list[SpeedRound]:
    """Rounds whose prompt and answer fill the context; the prompt is text, repeated where it is too short."""
    prompt = list(itertools.islice(itertools.cycle(text), max(1, context - DECODED - 1)))
    return [SpeedRound(index, prompt) for index in range(rounds)]


def _times(metrics: RequestMetrics | None) -> tuple[float, float, float]:
    assert metrics is not None
    assert metrics.first_scheduled_time is not None
    assert metrics.first_token_time is not None
    assert metrics.finished_time is not None
    return metrics.first_scheduled_time, metrics.first_token_time, metrics.finished_time
