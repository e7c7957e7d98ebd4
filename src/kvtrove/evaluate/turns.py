"""Are several facts found again, one turn after the other, in another order than they were stated?

| fact 1 | fillers | fact 2 | fillers | fact 3 | fillers | fact 4 | fillers | "4?" answer "3?" answer "2?" ...
|<--------------------------- length - room for the turns ------------->|

What is kept for one question must serve those that nobody has asked yet: caches that read the question before they drop
tokens look better in single questions than they are.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvtrove.engine import Engine
from kvtrove.evaluate.prefix import common, compacted
from kvtrove.evaluate.settings import Settings
from kvtrove.evaluate.sources import Dialogue, Fact, Source
from kvtrove.llm import LLM
from kvtrove.request import SamplingParams

Message = Mapping[str, str]
Render = Callable[[Sequence[Message]], list[int]]
FACTS = 4
TURN = 64
"""Tokens of a question and its answer, reserved."""


@dataclass(frozen=True)
class Talk:
    """messages: up to the first question. facts: in the order in which they are asked."""

    messages: list[Message]
    facts: list[Fact]


@dataclass(frozen=True)
class TurnsCell:
    """Greedy conversations of one length, in which the model's own answers stay."""

    length: int
    talks: list[Talk]
    answer_tokens: int
    render: Render = field(repr=False)

    kind = "turns"

    @property
    def key(self) -> str:
        digest = hashlib.sha256()
        for talk in self.talks:
            digest.update(array("i", self.render(_asked(talk.messages, talk.facts[0].question))).tobytes())
            digest.update("|".join(fact.value for fact in talk.facts).encode())
        return f"turns {self.length} {digest.hexdigest()[:16]}"

    def run(self, engines: Mapping[str, Engine]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Per configuration {"length", "hits": right answers, "asked"}."""
        asked = sum(len(talk.facts) for talk in self.talks)
        for name, engine in engines.items():
            hits = sum(self._talk(engine, talk) for talk in self.talks)
            yield name, {"length": self.length, "hits": hits, "asked": asked}

    def _talk(self, engine: Engine, talk: Talk) -> int:
        llm, params = LLM.from_engine(engine), SamplingParams(temperature=0, max_tokens=self.answer_tokens)
        messages, hits = talk.messages, 0
        first, other = (self.render(_asked(messages, text)) for text in (talk.facts[0].question, "?"))
        with compacted(engine, first[: common(first, other)]):
            for fact in talk.facts:
                messages = _asked(messages, fact.question)
                [output] = llm.generate([self.render(messages)], params, use_tqdm=False)
                text = output.outputs[0].text
                hits += fact.value in text
                messages = [*messages, {"role": "assistant", "content": text.strip() or "-"}]
        return hits


def turns_cells(settings: Settings, source: Source, render: Render) -> list[TurnsCell]:
    """One cell a length. Facts whose questions are the same would contradict each other: only one of them is stated."""
    cells = []
    for length in sorted(settings.lengths or ()):
        talks = []
        for sample in range(settings.samples):
            dialogue = source(settings.seed * 1_000_003 + sample)
            drawn = {fact.question: fact for fact in (dialogue.fact() for _ in range(4 * FACTS))}
            facts = list(drawn.values())[:FACTS]
            talks.append(Talk(_stated(facts, dialogue, length - TURN * len(facts), render), facts[::-1]))
        cells.append(TurnsCell(length, talks, settings.answer_tokens, render))
    return cells


def _stated(facts: Sequence[Fact], dialogue: Dialogue, room: int, render: Render) -> list[Message]:
    """The facts and, evenly between them, as many fillers as fit into `room` tokens."""
    fillers: list[tuple[str, str]] = []

    def messages() -> list[Message]:
        exchanges: list[tuple[str, str]] = []
        for i, fact in enumerate(facts):
            exchanges.append((fact.statement, fact.acknowledgement))
            exchanges += fillers[i :: len(facts)]
        texts = itertools.chain.from_iterable(exchanges)
        return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]

    size = len(render(_asked(messages(), facts[0].question)))
    while size <= room:
        fillers.append(dialogue.filler())
        size += len(render([{"role": "user", "content": "".join(fillers[-1])}])) // 2
        size = size if size <= room else len(render(_asked(messages(), facts[0].question)))
    while fillers and len(render(_asked(messages(), facts[0].question))) > room:
        fillers.pop()
    return messages()


def _asked(messages: Sequence[Message], question: str) -> list[Message]:
    return [*messages, {"role": "user", "content": question}]
