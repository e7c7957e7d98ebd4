"""Is a stated fact found again? One cell of the grid: dialogues of one length, the fact at one depth.

| exchange | exchange | "The code is 4711." "Noted." | exchange | ... | "What is the code?" -> answer
0 %                     depth, in exchanges                           100 %
|<------------------- prompt, at most length - answer_tokens --------------------------->|
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvtrove.config import ConfigError
from kvtrove.engine import Engine
from kvtrove.evaluate.prefix import common, compacted, on_demand
from kvtrove.evaluate.settings import Settings
from kvtrove.evaluate.sources import Fact, Source
from kvtrove.llm import LLM
from kvtrove.request import SamplingParams

Exchange = tuple[str, str]
Render = Callable[[Sequence[Mapping[str, str]]], list[int]]
"""Messages -> tokens of a prompt that ends where the answer begins."""


@dataclass(frozen=True)
class Question:
    """prompt: tokens. An answer that contains `value` is right. before: tokens that stand before what is asked."""

    prompt: list[int]
    value: str
    before: int = 0


@dataclass(frozen=True)
class RecallCell:
    """Greedy answers of one length and depth."""

    length: int
    depth: float
    questions: list[Question]
    answer_tokens: int

    kind = "recall"

    @property
    def key(self) -> str:
        digest = hashlib.sha256()
        for question in self.questions:
            digest.update(array("i", question.prompt).tobytes() + question.value.encode() + b"\0")
        return f"recall {self.length} {self.depth:g} {digest.hexdigest()[:16]}"

    def run(self, engines: Mapping[str, Engine]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Per configuration {"length", "depth", "hits": right answers, "answers": texts}."""
        params = SamplingParams(temperature=0, max_tokens=self.answer_tokens)
        prompts = [question.prompt for question in self.questions]
        for name, engine in engines.items():
            llm, answers = LLM.from_engine(engine), []
            alone = on_demand(engine.runner.cache.compactor)
            for some in self.questions if alone else [None]:
                with compacted(engine, some.prompt[: some.before] if some else ()):
                    outputs = llm.generate([some.prompt] if some else prompts, params, use_tqdm=False)
                    answers += [output.outputs[0].text for output in outputs]
            hits = sum(question.value in text for question, text in zip(self.questions, answers, strict=True))
            yield name, {"length": self.length, "depth": self.depth, "hits": hits, "answers": answers}


def recall_cells(settings: Settings, source: Source, render: Render) -> list[RecallCell]:
    """The grid. A sample has the same fact and fillers everywhere, so that only length and depth differ."""
    grid: dict[tuple[int, float], list[Question]] = {}
    for sample in range(settings.samples):
        dialogue = source(settings.seed * 1_000_003 + sample)
        fact, fillers = dialogue.fact(), list[Exchange]()
        for length in sorted(settings.lengths or ()):
            room = length - settings.answer_tokens
            count = _fitting(fact, fillers, dialogue.filler, room, render)
            for depth in settings.depths:
                prompt = render(messages(fact, fillers[:count], depth))
                while len(prompt) > room:  # tokens at the seams depend on what stands beside them
                    count -= 1
                    prompt = render(messages(fact, fillers[:count], depth))
                other = render([*messages(fact, fillers[:count], depth)[:-1], {"role": "user", "content": "?"}])
                question = Question(prompt, fact.value, common(prompt, other))
                grid.setdefault((length, depth), []).append(question)
    return [RecallCell(*place, questions, settings.answer_tokens) for place, questions in grid.items()]


def messages(fact: Fact, fillers: Sequence[Exchange], depth: float) -> list[dict[str, str]]:
    """The dialogue up to its question."""
    at = round(depth * len(fillers))
    exchanges = [*fillers[:at], (fact.statement, fact.acknowledgement), *fillers[at:]]
    texts = [*itertools.chain.from_iterable(exchanges), fact.question]
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def _fitting(fact: Fact, fillers: list[Exchange], draw: Callable[[], Exchange], room: int, render: Render) -> int:
    """How many of the fillers fit into `room` tokens; draws more into the list while there are too few."""

    def size(count: int) -> int:
        while len(fillers) < count:
            fillers.append(draw())
        return len(render(messages(fact, fillers[:count], 0.0)))

    if (shortest := size(0)) > room:
        raise ConfigError(
            f"lengths: a dialogue with nothing between statement and question has {shortest} tokens, and "
            f"{room} are left beside the answer: give lengths of at least {shortest + 64}, or fewer answer_tokens"
        )
    low, high = 0, 1
    while size(high) <= room:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= room else (low, middle)
    return low
