"""What the scripts of this directory measure, so that every engine is asked the same, and the JSON they print.

    decode:BxC    milliseconds of a step of B sequences around a context of C tokens
    prefill:N     tokens/s of a prompt of N tokens, of which nothing is cached
    ttft:N        seconds to the first token behind a prefix of N tokens: computed (cold), and found in the cache (hit)
    mixed:N       seconds until N requests are answered that arrive at once (those of `kvtrove bench mixed`)

Prompts are random token ids, answers are greedy and end at their length alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from random import Random
from statistics import quantiles
from typing import Any, Protocol

CELLS = (
    *("decode:1x128", "decode:8x1024", "decode:32x1024", "decode:8x4096"),
    *("prefill:512", "prefill:2048", "prefill:8192", "ttft:8192", "mixed:64"),
)
KINDS = ("decode", "prefill", "ttft", "mixed")
WARMUP = 2
"""Decode steps that are not counted."""
QUESTION = 16
"""Tokens behind the prefix of ttft, different in every request."""
PROMPTS, ANSWERS, SHARED = (100, 1500), (32, 128), 512
"""Of mixed: shortest and longest, and the tokens with which every second prompt begins. As in `kvtrove bench mixed`."""


@dataclass(frozen=True)
class Cell:
    """tokens: context, prompt or prefix; of mixed, the number of requests."""

    kind: str
    tokens: int
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.kind}:{self.batch}x{self.tokens}" if self.kind == "decode" else f"{self.kind}:{self.tokens}"


def cell(text: str) -> Cell:
    """ValueError for anything that is not written as the head of this file says."""
    kind, _, size = text.partition(":")
    batch, _, tokens = size.partition("x") if kind == "decode" else ("1", "", size)
    if kind not in KINDS or int(batch) < 1 or int(tokens) < 1:
        raise ValueError(text)
    return Cell(kind, int(tokens), int(batch))


@dataclass(frozen=True)
class Options:
    """Of the command line. chunk: tokens of prompts in a step. repeats: of a prompt or workload."""

    model: Path
    cells: tuple[Cell, ...]
    threads: int
    kv: str
    weights: str
    chunk: int
    steps: int
    repeats: int

    @property
    def vocab_size(self) -> int:
        return int(self._config()["vocab_size"])

    @property
    def max_position(self) -> int:
        return int(self._config()["max_position_embeddings"])

    def _config(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.model / "config.json").read_text())
        return values

    @property
    def sequences(self) -> int:
        """That run at once, at most."""
        return max(c.tokens if c.kind == "mixed" else c.batch for c in self.cells)

    def tokens_of(self, c: Cell) -> int:
        """Room that one sequence of a cell needs at most."""
        if c.kind == "mixed":
            return PROMPTS[1] + ANSWERS[1]
        return c.tokens + QUESTION + 1 + (2 * self.answer(c) if c.kind == "decode" else 0)

    def answer(self, c: Cell) -> int:
        """Tokens asked of a sequence that decodes: it must not end while the prompts of others are computed."""
        return self.steps + WARMUP + ceil(c.batch * c.tokens / self.chunk) + c.batch + 1

    @property
    def longest(self) -> int:
        return max(self.tokens_of(c) for c in self.cells)

    @property
    def kv_tokens(self) -> int:
        """Room that the cache needs so that nothing is evicted within a cell."""
        return max(self._all_tokens_of(c) for c in self.cells)

    def _all_tokens_of(self, c: Cell) -> int:
        if c.kind == "mixed":
            asked = workload(c.tokens, self.vocab_size, self.max_position)
            return sum(len(ask.prompt) + ask.max_tokens for ask in asked)
        return self.tokens_of(c) * (c.batch if c.kind == "decode" else 2)


def options_parser(doc: str | None, kv: Sequence[str], weights: Sequence[str]) -> argparse.ArgumentParser:
    """The options that all scripts share; the first of `kv` and `weights` is the default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="what the engine reads (see above)")
    parser.add_argument("--cells", nargs="+", default=CELLS, metavar="CELL", help=f"default: {' '.join(CELLS)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv", choices=kv, default=kv[0], help="how the cache stores K and V")
    parser.add_argument("--weights", choices=weights, default=weights[0], help="recorded; the model says what they are")
    parser.add_argument("--chunk", type=int, default=2048, help="tokens of prompts in a step at most")
    parser.add_argument("--steps", type=int, default=15, help="decode steps that are timed")
    parser.add_argument("--repeats", type=int, default=3, help="of prompts; mixed runs once")
    parser.add_argument("--json", type=Path, help="write there instead of to stdout")
    return parser


def options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Options:
    try:
        cells = tuple(cell(text) for text in args.cells)
    except ValueError as error:
        parser.error(f"--cells: {error} is none; write decode:8x1024, prefill:512, ttft:8192 or mixed:64")
    if not args.model.exists():
        parser.error(f"{args.model} does not exist")
    return Options(args.model, cells, args.threads, args.kv, args.weights, args.chunk, args.steps, args.repeats)


@dataclass(frozen=True)
class Ask:
    prompt: list[int]
    max_tokens: int


def random_prompt(vocab_size: int, length: int, random: Random) -> list[int]:
    return random.choices(range(vocab_size), k=length)


def workload(requests: int, vocab_size: int, max_position: int) -> list[Ask]:
    """Draw for draw what `kvtrove bench mixed` asks."""
    random = Random(0)
    longest = min(PROMPTS[1] + ANSWERS[1], max_position)
    shared = random_prompt(vocab_size, SHARED, random)
    asked = []
    for number in range(requests):
        answer = random.randint(*ANSWERS)
        prompt = random_prompt(vocab_size, min(random.randint(*PROMPTS), longest - answer), random)
        common = min(SHARED, len(prompt) - 1) if number % 2 else 0
        asked.append(Ask(shared[:common] + prompt[common:], answer))
    return asked


@dataclass
class Found:
    """Of one cell. samples: single values in the order of measuring; unit: theirs. facts: what else was counted."""

    cell: str
    figure: str
    unit: str
    samples: list[float] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | (spread(self.samples) if self.samples else {})


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes."""
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": middle, "p25": low, "p75": high, "min": min(values), "max": max(values)}


class Peer(Protocol):
    """An engine that measures cells in its own way."""

    def measure(self, c: Cell) -> list[Found]: ...


class Stepped(Protocol):
    """An engine that computes when it is told to."""

    def add(self, name: int, prompt: list[int], max_tokens: int) -> None: ...

    def step(self) -> None:
        """What is timed."""

    def tokens(self) -> dict[int, int]:
        """New ones of the last step, by request. Not timed."""

    def busy(self) -> bool: ...

    def abort(self) -> None:
        """All requests; the engine is idle afterwards."""

    def forget(self) -> None:
        """Empty the prefix cache, as far as the engine can."""


class SteppedPeer:
    """Cells of an engine that is driven step by step."""

    def __init__(self, engine: Stepped, settings: Options) -> None:
        self.engine, self.options = engine, settings
        self._vocab, self._number = settings.vocab_size, 0

    def measure(self, c: Cell) -> list[Found]:
        kinds = {"decode": self._decode, "prefill": self._prefill, "ttft": self._ttft, "mixed": self._mixed}
        try:
            return kinds[c.kind](c)
        finally:
            self.engine.abort()

    def _decode(self, c: Cell) -> list[Found]:
        """The middle of the steps is at the context, but for tokens that early sequences drew beside late prompts."""
        random, steps = self._random(c), self.options.steps
        length = max(1, c.tokens - WARMUP - steps // 2)
        drawn = dict.fromkeys((self._add(random_prompt(self._vocab, length, random), c) for _ in range(c.batch)), 0)
        while not all(drawn.values()):
            self._count(drawn)
        for _ in range(WARMUP):
            self._count(drawn)
        samples, contexts = [], []
        for _ in range(steps):
            contexts.append(length + sum(drawn.values()) / c.batch)
            samples.append(self._count(drawn, c.batch) * 1e3)
        return [Found(str(c), "step", "ms", samples, {"context": sum(contexts) / steps})]

    def _prefill(self, c: Cell) -> list[Found]:
        random = self._random(c)
        self._first_token(random_prompt(self._vocab, min(c.tokens, self.options.chunk), random))
        seconds = [self._first_token(random_prompt(self._vocab, c.tokens, random)) for _ in range(self.options.repeats)]
        return [Found(str(c), "prefill", "tokens/s", [c.tokens / s for s in seconds], {"seconds": seconds})]

    def _ttft(self, c: Cell) -> list[Found]:
        random = self._random(c)
        self._first_token(random_prompt(self._vocab, min(c.tokens, self.options.chunk), random))
        found = [Found(str(c), kind, "s") for kind in ("cold", "hit")]
        for _ in range(self.options.repeats):
            shared = random_prompt(self._vocab, c.tokens, random)
            for one in found:
                one.samples.append(self._first_token(shared + random_prompt(self._vocab, QUESTION, random)))
        return found

    def _mixed(self, c: Cell) -> list[Found]:
        asked = workload(c.tokens, self._vocab, self.options.max_position)
        self._first_token(random_prompt(self._vocab, min(PROMPTS[1], self.options.chunk), self._random(c)))
        self.engine.forget()
        drawn: dict[int, int] = {}
        steps, start = 0, time.perf_counter()
        for ask in asked:
            drawn[self._add(ask.prompt, ask.max_tokens)] = 0
        while self.engine.busy():
            self._count(drawn)
            steps += 1
        seconds = time.perf_counter() - start
        wanted = sum(ask.max_tokens for ask in asked)
        if sum(drawn.values()) != wanted:
            raise RuntimeError(f"{sum(drawn.values())} tokens were answered instead of {wanted}")
        facts = {"prompt_tokens": sum(len(ask.prompt) for ask in asked), "output_tokens": wanted, "steps": steps}
        return [Found(str(c), "wall", "s", [seconds], facts)]

    def _random(self, c: Cell) -> Random:
        """Its prompts begin like none of another cell, since the prefix cache outlives a cell."""
        return Random(f"{c} {self._number}")

    def _add(self, prompt: list[int], wanted: Cell | int) -> int:
        self._number += 1
        self.engine.add(self._number, prompt, wanted if isinstance(wanted, int) else self.options.answer(wanted))
        return self._number

    def _count(self, drawn: dict[int, int], wanted: int | None = None) -> float:
        """Seconds of a step, whose tokens are counted; RuntimeError when it drew fewer or more than `wanted`."""
        start = time.perf_counter()
        self.engine.step()
        seconds = time.perf_counter() - start
        new = self.engine.tokens()
        if wanted is not None and sum(new.values()) != wanted:
            raise RuntimeError(f"a step drew {sum(new.values())} tokens instead of {wanted}")
        for name, count in new.items():
            drawn[name] += count
        return seconds

    def _first_token(self, prompt: list[int]) -> float:
        start = time.perf_counter()
        name = self._add(prompt, 1)
        while self.engine.busy():
            self.engine.step()
        seconds = time.perf_counter() - start
        if self.engine.tokens().get(name) != 1:
            raise RuntimeError("a prompt was not answered with one token")
        return seconds


def report(
    engine: str, version: str, settings: Options, start: Callable[[], Peer], path: Path | None, **more: Any
) -> None:
    """Start the engine, measure the cells, and print a table on stderr and the JSON on stdout or in a file.

    A cell that fails is told as an error in its place. more: settings that only this engine has.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    begun = time.perf_counter()
    peer = start()
    print(f"{engine} {version} on {settings.model}: ready after {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    found: list[dict[str, Any]] = []
    for c in settings.cells:
        begun = time.perf_counter()
        try:
            results = peer.measure(c)
        except (RuntimeError, ValueError, AssertionError, MemoryError) as error:
            results = [Found(str(c), "", "", error=f"{type(error).__name__}: {error}")]
        took = time.perf_counter() - begun
        for one in results:
            found.append(one.as_json() | {"took_s": took})
            print(_row(found[-1]), file=sys.stderr, flush=True)
    values = {
        "engine": engine,
        "version": version,
        "started": started,
        "machine": {"processor": _processor(), "cpus": os.cpu_count()},
        "settings": {
            "model": str(settings.model),
            "threads": settings.threads,
            "kv": settings.kv,
            "weights": settings.weights,
            "chunk": settings.chunk,
        }
        | more,
        "cells": found,
    }
    text = json.dumps(values, indent=1)
    if path is None:
        print(text)
    else:
        path.write_text(text + "\n")


def _row(found: dict[str, Any]) -> str:
    if found["error"] is not None:
        return f"{found['cell']:<16} {found['error']}"
    middle, low, high = (f"{found[name]:10.4g}" for name in ("median", "p25", "p75"))
    took = f"({found['took_s']:.0f} s)"
    return f"{found['cell']:<16} {found['figure']:<8}{middle} {found['unit']:<9}{low} ..{high}   {took}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
