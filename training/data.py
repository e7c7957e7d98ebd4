"""What the demo model is trained on: endless dialogues of the small world, cut to the length of a sequence.

A sequence is one dialogue in the chat template, or prose alone. The assistant's words carry the loss, and a share of
the others, so that prose is learned and most of the work at the output goes into what the model must say.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kvtrove.demo.world import Exchange, Fact, World

PROSE = 0.08  # share of sequences that are prose alone
OTHERS = 0.08  # share of the tokens nobody has to say that carry a loss
UNKNOWN = 0.03  # share of the questions that have no answer


class Dialogues:
    """Sequences of `length` + 1 tokens and the mask of those that carry a loss. The same seed gives the same stream.

    copying: share of sequences that are copying alone, which is what recall is made of.
    """

    def __init__(self, tokenizer: Tokenizer, seed: int, copying: float) -> None:
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.copying = copying

    def batch(self, count: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Tokens and mask, both [count, length + 1]."""
        pairs = [self._sequence(length + 1) for _ in range(count)]
        return np.stack([tokens for tokens, _ in pairs]), np.stack([mask for _, mask in pairs])

    def _sequence(self, length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        world = World(self.rng.randrange(2**40), "train")
        kind = self.rng.random()
        tokens: list[int] = []
        said: list[bool] = []
        if kind < PROSE:
            while len(tokens) < length:
                tokens += self.tokenizer.encode(world.paragraph() + "\n").ids
            said = [self.rng.random() < 0.5 for _ in tokens]
        else:
            turns = self._copies(world) if kind < PROSE + self.copying else self._turns(world, length)
            while len(tokens) < length:
                user, assistant = next(turns)
                asked = self.tokenizer.encode(f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n").ids
                answered = self.tokenizer.encode(f"{assistant}<|im_end|>").ids
                after = self.tokenizer.encode("\n").ids
                tokens += asked + answered + after
                said += [self.rng.random() < OTHERS for _ in asked] + [True] * len(answered) + [False] * len(after)
        return np.array(tokens[:length]), np.array(said[:length])

    def _copies(self, world: World) -> Iterator[Exchange]:
        while True:
            yield world.repeat()

    def _turns(self, world: World, length: int) -> Iterator[Exchange]:
        """Facts, questions about them and fillers; how dense differs from dialogue to dialogue.

        What is asked was told a moment ago, long ago, or anywhere: each a third, so that no distance is rare.
        """
        told: list[Fact] = []
        fillers, facts = self.rng.choice(((0.0, 0.45), (0.15, 0.4), (0.3, 0.3), (0.5, 0.2)))
        most = self.rng.choice((2, 4, 8, 16, 64)) if length > 300 else self.rng.choice((1, 2, 3, 5))
        while True:
            kind = self.rng.random()
            if not told or (kind < facts and len(told) < most):
                told.append(world.fact())
                yield told[-1].statement, told[-1].acknowledgement
            elif kind < facts + fillers:
                yield world.filler()
            elif self.rng.random() < UNKNOWN:
                yield world.unknown()
            else:
                fact = self.rng.choice((told[-1], told[0], self.rng.choice(told)))
                yield fact.question, fact.answer
