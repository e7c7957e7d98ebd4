"""All sampling fields at extremes, alone and in pairs, through validation and engine: every answer is 200 or 400.

    python -m tests.fuzz.numbers [--requests 20000] [--first 0] [--json FILE]

Request number i is a pure function of i, so a failure is repeated by its number alone. Requests run 16 at a time on the
embedded model; each must end with tokens or with a RequestError, and after all of them the engine must answer a plain
request and hold no block. A server says 400 for RequestError, 200 for tokens, and 500 for anything else.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from kvtrove.config import EngineConfig
from kvtrove.demo import demo_model_dir
from kvtrove.engine import Engine
from kvtrove.request import EngineError, RequestError, SamplingParams

VOCAB = 8192
BATCH = 16
FLOATS = (
    *(0, 1, -1, 2, -2, 0.5, 1e-5, 9e-6, 2e-5, 1e-9, 1e-39, 1e-45, 5e-324, 100, 100.1, -100, 0.01, 0.009, 10, -10, 400),
    *(1e10, 3e38, 3.4e38, 3.5e38, 1e39, 1e308, -1e308, float("inf"), float("-inf"), float("nan"), 10**300, 10**400),
)
COUNTS = (0, 1, 2, 3, 7, -1, -2, 64, 100, 101, VOCAB, VOCAB + 1, 2**31 - 1, 2**31, 2**63, 10**30, 1.5, True, None)
IDS = (0, 1, 2, 5, VOCAB - 1, VOCAB, 9000, 128009, 2**31 - 1, 2**31, 2**63, -1, -2)
LISTS = (
    *([], [0], [5, 5, 5], list(range(VOCAB)), list(range(1, VOCAB)), [2] * 300_001, [128009], [VOCAB], [-1]),
    *([2**63], [2.5], ["2"], [None], None, list(range(64)) * 100),
)
FIELDS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"), FLOATS),
    **dict.fromkeys(("frequency_penalty", "length_penalty"), FLOATS),
    **dict.fromkeys(("n", "top_k", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs", "beam_width"), COUNTS),
    "seed": (0, -1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**400, 1.5, None),
    "stop": ("", "a", " ", "\u0000", ["the"], ["a"] * 64, ["a"] * 65, [""], [5], "x" * 5000, None),
    "stop_token_ids": LISTS,
    "allowed_token_ids": LISTS,
    "logit_bias": (
        *({i: 1.0} for i in IDS),
        *({5: value, 6: -1.0} for value in FLOATS),
        *(dict.fromkeys(range(VOCAB), value) for value in (100.0, -100.0, 1e39)),
        *({}, {"5": 1.0}, None),
    ),
    "ignore_eos": (True, False),
    "detokenize": (True, False),
    "output_kind": ("delta", "final_only", "else"),
}
PROMPTS = ([5], [0] * 40, [7, 8, 9] * 20, [8191, 0, 8191], list(range(100, 200)))
BASES: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.0},
    {"n": 3},
    {"beam_width": 2, "n": 2},
    {"min_tokens": 3},
    {"top_k": 5, "top_p": 0.5},
)
SINGLES = [((name, value),) for name, values in FIELDS.items() for value in values]


def fields_of(number: int) -> tuple[list[int], dict[str, Any]]:
    """(prompt, fields) of a request: first every value alone on every base, then two fields drawn at random."""
    rng = random.Random(number)
    alone = len(SINGLES) * len(BASES)
    if number < alone:
        base, changes = BASES[number // len(SINGLES)], SINGLES[number % len(SINGLES)]
    else:
        names = rng.sample(list(FIELDS), 2)
        base, changes = rng.choice(BASES), tuple((name, rng.choice(FIELDS[name])) for name in names)
    return rng.choice(PROMPTS), {"max_tokens": 4, **base, **dict(changes)}


class Fuzz:
    """Runs requests on one engine and counts how they ended: "200", "400", and whatever else is a failure."""

    def __init__(self) -> None:
        config = EngineConfig(str(demo_model_dir()), num_blocks=256, max_num_seqs=64, linear="torch", max_model_len=512)
        self.engine = Engine(config)
        self.ends: Counter[str] = Counter()
        self.failures: list[tuple[int, str]] = []

    def run(self, numbers: list[int]) -> None:
        running: set[int] = set()
        for number in numbers:
            self._add(number, running)
        for _ in range(2000):
            if not running:
                break
            self._step(running)
        for number in running:
            self._end(number, TimeoutError("2,000 steps without an end"))
            self.engine.abort(str(number))

    def _add(self, number: int, running: set[int]) -> None:
        prompt, fields = fields_of(number)
        try:
            params = SamplingParams(**fields)
            self.engine.add(str(number), prompt, params)
        except Exception as error:
            return self._end(number, error)
        running.add(number)
        if params.max_tokens is None or params.max_tokens > 8:
            self._step(running)
            if self.engine.abort(str(number)) or number in running:  # as when a client hangs up
                running.remove(number)
                self._end(number, None)
        return None

    def _step(self, running: set[int]) -> None:
        for output in self.engine.step():
            if output.finished:
                running.remove(int(output.request_id))
                self._end(int(output.request_id), output.error)

    def _end(self, number: int, error: Exception | None) -> None:
        end = "200" if error is None else "400" if isinstance(error, RequestError) else type(error).__name__
        self.ends[end] += 1
        if end not in ("200", "400") or isinstance(error, EngineError):
            self.failures.append((number, f"{type(error).__name__}: {error}"))

    def report(self) -> dict[str, Any]:
        """What was seen, and whether the engine is as it should be afterwards."""
        self.engine.add("last", [5, 6, 7], SamplingParams(max_tokens=4, temperature=0, ignore_eos=True))
        [last] = [output for _ in range(4) for output in self.engine.step()][-1:]
        stats = self.engine.stats()
        alive = last.finished and len(last.outputs[0].token_ids) == 4
        return {
            "benchmark": "fuzz of sampling fields",
            "answers": dict(self.ends),
            "failures": self.failures[:20],
            "faults": stats.faults.steps,
            "leaked_blocks": stats.kv.num_blocks - stats.kv.free - stats.kv.cached,
            "alive": alive,
            "ok": alive and not self.failures and not stats.faults.steps,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first request")
    parser.add_argument("--json", default="-", help="file to write, - for standard output")
    args = parser.parse_args()
    fuzz = Fuzz()
    for first in range(args.first, args.first + args.requests, BATCH):
        fuzz.run(list(range(first, min(first + BATCH, args.first + args.requests))))
    result = fuzz.report()
    text = json.dumps(result, indent=1) + "\n"
    if args.json == "-":
        sys.stdout.write(text)
    else:
        Path(args.json).write_text(text)
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
