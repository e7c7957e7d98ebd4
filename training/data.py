"""What the demo model is trained on: endless dialogues of the small world, cut to the length of a sequence.

A sequence is one dialogue in the chat template, or prose alone. The assistant's words carry the loss, and a share of
the others, so that prose is learned and most of the work at the output goes into what the model must say.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kvtrove.demo.world import Exchange, Fact, World

OTHERS = 0.08  # share of the tokens nobody has to say that carry a loss


@dataclass(frozen=True)
class Mix:
    """copying, prose: shares of sequences that are copying alone, which is what recall is made of, and prose alone.

    emphasis: how much a token of a recalled value counts; another word of the assistant's counts 1.
    unknown: share of the questions that have no answer. loose: see `World`.
    """

    copying: float = 0.1
    prose: float = 0.08
    emphasis: float = 1.0
    unknown: float = 0.03
    loose: bool = True


class Dialogues:
    """Sequences of `length` + 1 tokens and how much each counts in the loss. The same seed gives the same stream."""

    def __init__(self, tokenizer: Tokenizer, seed: int, mix: Mix) -> None:
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.mix = mix

    def batch(self, count: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tokens and weights, both [count, length + 1]."""
        pairs = [self._sequence(length + 1) for _ in range(count)]
        return np.stack([tokens for tokens, _ in pairs]), np.stack([weights for _, weights in pairs])

    def _sequence(self, length: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        world = World(self.rng.randrange(2**40), "train", self.mix.loose)
        kind = self.rng.random()
        tokens: list[int] = []
        weights: list[float] = []
        if kind < self.mix.prose:
            while len(tokens) < length:
                tokens += self.tokenizer.encode(world.paragraph() + "\n").ids
            weights = [float(self.rng.random() < 0.5) for _ in tokens]
        else:
            turns = self._copies(world) if kind < self.mix.prose + self.mix.copying else self._turns(world, length)
            while len(tokens) < length:
                (user, assistant), value = next(turns)
                asked = self.tokenizer.encode(f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n").ids
                answered = self.tokenizer.encode(f"{assistant}<|im_end|>")
                after = self.tokenizer.encode("\n").ids
                tokens += asked + answered.ids + after
                weights += [float(self.rng.random() < OTHERS) for _ in asked]
                weights += self._emphasised(assistant, value, answered.offsets)
                weights += [0.0] * len(after)
        return np.array(tokens[:length]), np.array(weights[:length], np.float32)

    def _emphasised(self, text: str, value: str, offsets: list[tuple[int, int]]) -> list[float]:
        start = text.rfind(value) if value else len(text)
        end = start + len(value)
        return [self.mix.emphasis if first < end and last > start else 1.0 for first, last in offsets]

    def _copies(self, world: World) -> Iterator[tuple[Exchange, str]]:
        while True:
            yield world.repeat(), ""

    def _turns(self, world: World, length: int) -> Iterator[tuple[Exchange, str]]:
        """Exchanges, each with the value that is recalled in it: facts, questions about them, fillers.

        How dense they are differs from dialogue to dialogue. What is asked was told a moment ago, long ago, or
        anywhere: each a third, so that no distance is rare.
        """
        told: list[Fact] = []
        fillers, facts = self.rng.choice(((0.0, 0.45), (0.15, 0.4), (0.3, 0.3), (0.5, 0.2)))
        most = self.rng.choice((2, 4, 8, 16, 64)) if length > 300 else self.rng.choice((1, 2, 3, 5))
        while True:
            kind = self.rng.random()
            if not told or (kind < facts and len(told) < most):
                told.append(world.fact())
                yield (told[-1].statement, told[-1].acknowledgement), ""
            elif kind < facts + fillers:
                yield world.filler(), ""
            elif self.rng.random() < self.mix.unknown:
                yield world.unknown(), ""
            else:
                fact = self.rng.choice((told[-1], told[0], self.rng.choice(told)))
                yield (fact.question, fact.answer), fact.value
