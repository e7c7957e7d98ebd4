"""A real server to hold predictions against: `kvtrove serve` in a process of its own, asked with exact token ids.

    calibrate      step times of the engine alone, by `kvtrove bench calibrate`
    overhead_of    what serving adds to them: per step, per sequence and prompt of a step, and to the wait of a request

The engine's calibration knows nothing of HTTP, of JSON and of the event loop that shares the interpreter with the
engine. That is measured here with loads of their own (decodes of equal prompts, short requests beside them), before and
apart from the load that a prediction is compared with.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import median

import httpx
import numpy as np

from kvtrove.bench.stream import Events, Transcript
from kvtrove.plan.cost import FittedCost, StepWork
from kvtrove.plan.hardware import StepFit, read_calibration

PROBE_PROMPT, PROBE_OUTPUT, PROBE_REPEATS = 32, 64, 6
LONG_OUTPUT, PROBE_PAUSE = 192, 0.08  # tokens; seconds between two requests that interrupt
START_TIMEOUT = 60.0  # seconds


@dataclass
class Answer:
    """A request that was due at `due`; arrivals: (time, tokens) as they came. Times on one clock, in seconds."""

    due: float
    arrivals: Sequence[tuple[float, int]] = field(default_factory=tuple)
    cached: int = 0

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.arrivals)

    @property
    def first(self) -> float:
        return self.arrivals[0][0]

    @property
    def last(self) -> float:
        return self.arrivals[-1][0]

    @property
    def ttft(self) -> float:
        return self.first - self.due

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first; None where all came at once."""
        later = self.tokens - self.arrivals[0][1]
        return (self.last - self.first) / later if later else None


@dataclass(frozen=True)
class Overhead:
    """Seconds that serving adds to every step, to it for each of its sequences and prompts, and to a first token.

    prompt: what a request takes from those who decode beside it. request: how much longer its own first token waits.
    """

    step: float
    sequence: float
    prompt: float = 0.0
    request: float = 0.0

    def served(self, fit: StepFit) -> StepFit:
        """The engine's step as clients see it."""
        fixed, per_sequence = fit.fixed + self.step, fit.per_sequence + self.sequence
        per_prompt = fit.per_prompt + self.prompt
        return replace(fit, fixed=max(0.0, fixed), per_sequence=max(0.0, per_sequence), per_prompt=per_prompt)


def calibrate(model: str, batch: int, context: int, folder: Path) -> StepFit:
    """The engine's step times on this machine, measured in a process of its own."""
    out = folder / "calibration.json"
    command = [sys.executable, "-m", "kvtrove", "bench", "calibrate", "--quiet", "--model", model]
    subprocess.run([*command, "--batch", str(batch), "--context", str(context), "--out", str(out)], check=True)
    fit = read_calibration(out).fit
    assert fit is not None
    return fit


@contextmanager
def server(model: str, *flags: str) -> Iterator[str]:
    """The address of a server of `model` that ends with the block; its messages go to this process's stderr."""
    command = [sys.executable, "-m", "kvtrove", "serve", model, "--port", "0", "--log-level", "error", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # ends when the process does
        found = re.match(r"(http://\S+)/v1 serves", line)
        if found is None:
            raise SystemExit(f"the server did not start: {line!r}")
        _wait_ready(found[1])
        yield found[1]
    finally:
        process.terminate()
        process.wait(60)


def _wait_ready(url: str) -> None:
    """The address is printed before the socket listens."""
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            raise SystemExit(f"the server at {url} does not answer within {START_TIMEOUT:g} s")
        time.sleep(0.05)


class Asker:
    """Sends prompts of token ids and reads answers of an exact length. clock: seconds."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.clock = time.perf_counter

    async def ask(self, prompt: Sequence[int], new: int, due: float | None = None) -> Answer:
        """due: when it should have been sent; now if left out. SystemExit when the answer has not `new` tokens."""
        body = {
            "prompt": list(prompt),
            "max_tokens": new,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        due = self.clock() if due is None else due
        events, transcript = Events(), Transcript()
        async with self._http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                raise SystemExit(f"the server answered {response.status_code}: {(await response.aread())[:300]!r}")
            async for data in response.aiter_bytes():
                now = self.clock()
                for payload in events.feed(data):
                    transcript.add(now, payload)
        answer = Answer(due, transcript.arrivals(), transcript.cached_tokens or 0)
        if answer.tokens != new:
            raise SystemExit(f"an answer has {answer.tokens} tokens, {new} were asked for: {transcript.error}")
        return answer

    async def replay(self, requests: Sequence[tuple[float, Sequence[int], int]]) -> list[Answer]:
        """(seconds from now, prompt, new tokens) in order of time: each is sent when it is due, come what may."""
        start = self.clock()
        async with asyncio.TaskGroup() as group:
            tasks = []
            for at, prompt, new in requests:
                await asyncio.sleep(max(0.0, start + at - self.clock()))
                tasks.append(group.create_task(self.ask(prompt, new, start + at)))
        return [task.result() for task in tasks]


@asynccontextmanager
async def asker(url: str) -> AsyncIterator[Asker]:
    """Connected to a server that has answered one short request: what is loaded on first use is loaded."""
    unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=unlimited, trust_env=False) as http:
        asks = Asker(http)
        await asks.ask([5, 6, 7], 3)  # fills no block: nothing of it stays in the cache
        yield asks


def random_prompt(random: Random, vocab: int, length: int) -> list[int]:
    return random.choices(range(vocab), k=length)


async def overhead_of(asks: Asker, fit: StepFit, vocab: int, batch: int) -> Overhead:
    """What serving adds to `fit`: over decodes of 1 to `batch` sequences, then with requests that come in between."""
    random = Random(7)
    sizes = sorted({1, max(2, batch // 4), max(2, batch // 2), batch})
    rows, extra, weights = [], [], []
    for size in sizes * PROBE_REPEATS:
        step = await _decode_step(asks, _probes(random, vocab, size), PROBE_OUTPUT)
        rows.append((1.0, size))
        extra.append(step - FittedCost(fit).seconds(_decodes(size, PROBE_OUTPUT)))
        weights.append(1 / step)  # relative errors, as in the calibration of the engine
    scale = np.array(weights)
    (per_step, per_sequence), *_ = np.linalg.lstsq(np.array(rows) * scale[:, None], np.array(extra) * scale, rcond=None)
    found = Overhead(float(per_step), float(per_sequence))
    prompt, request = await _beside(asks, FittedCost(found.served(fit)), vocab, max(1, batch // 2))
    return replace(found, prompt=prompt, request=request)


def _probes(random: Random, vocab: int, count: int) -> list[list[int]]:
    return [random_prompt(random, vocab, PROBE_PROMPT) for _ in range(count)]


def _decodes(size: int, output: int) -> StepWork:
    """A step in the middle of their outputs."""
    return StepWork(size, round(size * (PROBE_PROMPT + output / 2)), 0, size)


async def _beside(asks: Asker, cost: FittedCost, vocab: int, size: int) -> tuple[float, float]:
    """(prompt, request) of `Overhead`, from short requests beside `size` sequences that decode.

    The others decode alone, then beside the requests: what their steps are longer by, the requests took. A request
    comes in the middle of a step and is computed in the next one; what its first token takes beyond that, it waited.
    """
    taken, waits = [], []
    for number in range(PROBE_REPEATS):
        random = Random(100 + number)
        alone = await _decode_step(asks, _probes(random, vocab, size), LONG_OUTPUT)
        done = asyncio.Event()
        start = asks.clock()
        interrupting = asyncio.create_task(_interrupt(asks, vocab, done))
        beside = await _decode_step(asks, _probes(random, vocab, size), LONG_OUTPUT)
        done.set()
        answers = await interrupting
        taken.append(max(0.0, 1 - alone / beside) * (asks.clock() - start) / len(answers))
        waits += [answer.ttft for answer in answers]
    decodes, length = _decodes(size, LONG_OUTPUT), PROBE_PROMPT
    both = StepWork(length + size, decodes.cached_tokens, length * (length + 1) // 2, 1 + size, 1)
    step, joint = cost.seconds(decodes), cost.seconds(both)
    prompt = max(0.0, median(taken) - (joint - step))
    return prompt, max(0.0, median(waits) - (step / 2 + joint + prompt))


async def _interrupt(asks: Asker, vocab: int, done: asyncio.Event) -> list[Answer]:
    """Asks for one token again and again until `done`."""
    random, answers = Random(200), list[Answer]()
    while not done.is_set():
        answers.append(await asks.ask(_probes(random, vocab, 1)[0], 1))
        await asyncio.sleep(PROBE_PAUSE)
    return answers


async def _decode_step(asks: Asker, prompts: Sequence[Sequence[int]], output: int) -> float:
    """Seconds per token while every one of the prompts decodes and none is computed."""
    answers = await asyncio.gather(*(asks.ask(prompt, output) for prompt in prompts))
    start, end = max(a.first for a in answers), min(a.last for a in answers)
    steps = []
    for answer in answers:
        inside = [(at, count) for at, count in answer.arrivals if start <= at <= end]
        if len(inside) > 1:
            steps.append((inside[-1][0] - inside[0][0]) / sum(count for _, count in inside[1:]))
    if not steps:
        raise SystemExit("the probes did not decode together; is the machine busy with something else?")
    return median(steps)
