"""The evaluation: what is measured, in which order, and what comes out.

Every configuration of the cache, or of the weights, and every other model goes through the same cells:

    layers   with a budget (`fit_bits`, `max_kl`): single layers first, which choose the cache to compare   (fit.py)
    text     segments of ordinary text: KL, top-1 agreement and perplexity against the exact cache   (fidelity.py)
    recall   a grid depth x length of dialogues: is a stated fact found again?                       (recall.py)
    turns    several facts in one dialogue, asked one after the other in another order               (turns.py)
    speed    rounds of one prompt: tokens per second of prefill and decode                           (speed.py)

A cell's result is a pure function of model, settings and cell but for the speed, so it is computed once and kept
(store.py). The bytes per token are the cache's own arithmetic and need no run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kvtrove.engine import Engine
from kvtrove.evaluate.engines import Engines
from kvtrove.evaluate.fidelity import TextSegment
from kvtrove.evaluate.fit import Fit, fit
from kvtrove.evaluate.recall import recall_cells
from kvtrove.evaluate.settings import Settings
from kvtrove.evaluate.sources import source
from kvtrove.evaluate.speed import speed_rounds
from kvtrove.evaluate.store import Store, Value, cell_key
from kvtrove.evaluate.text import read_text, segments
from kvtrove.evaluate.turns import turns_cells
from kvtrove.kv.spec import KVCacheSpec
from kvtrove.llm import LLM
from kvtrove.models.fingerprint import model_fingerprint

Report = Callable[[str, int, int], None]
"""Told of (kind of cell, cells done, cells in total)."""


class Cell(Protocol):
    """The smallest piece of work. key: identifies it and all that goes into it beside model and settings."""

    @property
    def kind(self) -> str: ...
    @property
    def key(self) -> str: ...

    def run(self, engines: Mapping[str, Engine]) -> Iterator[tuple[str, Value]]:
        """(configuration, result) of each of these."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """settings: with what depends on the model filled in. results: configuration -> kind -> results of its cells.

    bytes_per_token: of a sequence as long as a segment of text. weight_bytes: of all weights, as planned.
    notes: what was left out and why. roots: keys of model and cache (`kvtrove.prices`). fit: what a budget chose.
    """

    settings: Settings
    bytes_per_token: dict[str, float]
    results: dict[str, dict[str, list[Value]]]
    notes: list[str]
    done: int
    total: int
    weight_bytes: dict[str, int] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)
    fit: Fit | None = None

    @property
    def interrupted(self) -> bool:
        return self.done < self.total


def evaluate(settings: Settings, state: str | None = None, report: Report | None = None) -> Evaluation:
    """Everything that the settings ask for; after Ctrl-C, what was finished until then.

    state: a file that keeps what is finished and has kept what was. Raises ConfigError, ModelError or RequestError.
    """
    engines = Engines.start(settings, report)
    cells, notes = plan_cells(engines)
    store = Store(state, fingerprint(engines))
    chosen = None
    if settings.fits:
        chosen = fit(engines, store, [cell for cell in cells if isinstance(cell, TextSegment)], report)
        engines.compared[chosen.recipe] = engines.started(chosen.recipe)
    keys = {
        (name, cell.key): cell_key(name, engine.runner.cache, cell.key)
        for name, engine in engines.compared.items()
        for cell in cells
    }
    with suppress(KeyboardInterrupt):
        for cell in _reported(cells, report):
            missing = {name: e for name, e in engines.compared.items() if store.get(keys[name, cell.key]) is None}
            for name, value in cell.run(missing) if missing else ():
                store.put(keys[name, cell.key], value)
    results: dict[str, dict[str, list[Value]]] = {name: {} for name in engines.compared}
    for name, cell in itertools.product(results, cells):
        if found := store.get(keys[name, cell.key]):
            results[name].setdefault(cell.kind, []).append(found)
    done, total = sum(len(v) for kinds in results.values() for v in kinds.values()), len(cells) * len(results)
    if done < total:
        notes.append(f"stopped by hand after {done} of {total} cells; the figures are of what was measured until then")
    weights = {name: engine.ledger.weights for name, engine in engines.compared.items()}
    roots = {name: engine.kv.chain_root(b"").hex() for name, engine in engines.compared.items()}
    return Evaluation(engines.settings, bytes_per_token(engines), results, notes, done, total, weights, roots, chosen)


def _reported(cells: list[Cell], report: Report | None) -> Iterator[Cell]:
    """The cells in order; each kind of them is a task whose progress is told before and after a cell."""
    totals, done = Counter(cell.kind for cell in cells), Counter[str]()
    for cell in cells:
        if report:
            report(cell.kind, done[cell.kind], totals[cell.kind])
        yield cell
        done[cell.kind] += 1
        if report:
            report(cell.kind, done[cell.kind], totals[cell.kind])


def plan_cells(engines: Engines) -> tuple[list[Cell], list[str]]:
    """The cells of all parts that were asked for, and notes on what has to be left out."""
    settings, tokenizer = engines.settings, engines.reference.tokenizer
    context, cells, notes = settings.context or 0, list[Cell](), list[str]()
    texts = segments(tokenizer, read_text(settings.text), context, settings.text_tokens)
    if "text" in settings.parts:
        cells += [TextSegment(i, tokens, engines.reference, settings.chunk) for i, tokens in enumerate(texts)]
    if "recall" in settings.parts and tokenizer.chat_template is None:
        notes.append("recall is left out: the model has no chat template to write dialogues with")
    elif "recall" in settings.parts:
        llm = LLM.from_engine(engines.reference)
        cells += recall_cells(
            settings, source(settings.needle), lambda messages: llm.chat_prompt(messages)["prompt_token_ids"]
        )
    if "turns" in settings.parts and tokenizer.chat_template is not None:
        talker = LLM.from_engine(engines.reference)
        cells += turns_cells(
            settings, source(settings.needle), lambda messages: talker.chat_prompt(messages)["prompt_token_ids"]
        )
    if "speed" in settings.parts:
        cells += speed_rounds(settings.rounds, texts[0], context)
    return cells, notes


def bytes_per_token(engines: Engines) -> dict[str, float]:
    """What the blocks of a sequence as long as the context take, divided by its tokens: windows count as they help, and
    so do tokens that leave behind a prompt of this length.
    """
    length = engines.settings.context or 0

    def held(cache: KVCacheSpec) -> int:
        compactor = cache.compactor
        return length if compactor is None else min(compactor.most(length), max(1, compactor.kept(length)))

    caches = {name: engine.runner.cache for name, engine in engines.compared.items()}
    return {name: cache.blocks_for(held(cache), 1) * cache.block_bytes / length for name, cache in caches.items()}


def fingerprint(engines: Engines) -> str:
    """Of all that results depend on and no cell's key says: version, model, tokens and their ends, device, steps."""
    from kvtrove import __version__

    engine, settings = engines.reference, engines.settings
    directory, dtype = Path(settings.model), str(engine.runner.model.precision)
    described: dict[str, Any] = {
        "version": __version__,
        "checkpoint": model_fingerprint(directory, engine.spec, dtype, engine.max_model_len).hex(),
        "tokenizer": hashlib.sha256(engine.tokenizer.backend.to_str().encode()).hexdigest(),
        "ends": engine.tokenizer.eos_token_ids,
        "device": engine.runner.arena.device,
        "chunk": settings.chunk,
        "answer_tokens": settings.answer_tokens,
    }
    if settings.models:
        others = (engines.compared[f"model={path}"] for path in settings.models)
        described["models"] = [
            model_fingerprint(Path(path), e.spec, str(e.runner.model.precision), e.max_model_len).hex()
            for path, e in zip(settings.models, others, strict=True)
        ]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]
