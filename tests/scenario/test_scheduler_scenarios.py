"""Scenario files of the scheduler: one page of text each, run on the echo model with all invariants checked.

# the first line says what is shown
block_size 4 | groups full window:6 | blocks 12 | budget 16 | seqs 8 | prefills 4 | cache off
req NAME FIRST..STOP [max N] [n N] [beam N] [salt WORD]      prompt = the token ids FIRST to STOP - 1
refuse NAME FIRST..STOP [...] : words of the message
step [TIMES] | run | abort NAME
expect ran NAME:TOKENS ...            what each request computed in the last step, nothing else
expect running NAME ... | waiting NAME ... | done NAME ...
expect cached NAME TOKENS | preempted NAME TIMES | computed TOKENS | free BLOCKS
expect right NAME ...                 the output is that of a run from scratch
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvtrove.kv.retention import Full, Retention, SinksAndWindow, SlidingWindow
from kvtrove.request import RequestError, SamplingParams
from kvtrove.scheduler.scheduler import SchedulerLimits
from tests.echo import EchoEngine, continuation, echo_spec

FILES = sorted((Path(__file__).parent / "scheduler").glob("*.txt"))
SETTINGS = {
    "block_size": "4",
    "groups": "full",
    "blocks": "100",
    "budget": "64",
    "seqs": "8",
    "prefills": "4",
    "cache": "on",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_scenario(path: Path) -> None:
    Scenario(path).play()


def test_there_are_scenarios():
    assert len(FILES) >= 10


def retention(word: str) -> Retention:
    kind, *numbers = word.split(":")
    rules = {"full": Full, "window": SlidingWindow, "sinks": SinksAndWindow}
    return rules[kind](*map(int, numbers))


class Scenario:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = dict(SETTINGS)
        self._engine: EchoEngine | None = None

    @property
    def engine(self) -> EchoEngine:
        if self._engine is None:
            s = self.settings
            spec = echo_spec(int(s["block_size"]), *map(retention, s["groups"].split()))
            limits = SchedulerLimits(int(s["seqs"]), int(s["budget"]), int(s["prefills"]))
            self._engine = EchoEngine(spec, int(s["blocks"]), limits, s["cache"] == "on")
        return self._engine

    def play(self) -> None:
        for number, line in enumerate(self.path.read_text().splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            try:
                self.do(words[0], words[1:], line)
            except AssertionError as error:
                raise AssertionError(f"{self.path.name}:{number}: {line.strip()}: {error}") from error

    def do(self, verb: str, words: list[str], line: str) -> None:
        if verb in SETTINGS:
            assert self._engine is None, "settings come before the first request"
            self.settings[verb] = " ".join(words)
        elif verb == "req":
            self.request(words)
        elif verb == "refuse":
            with pytest.raises(RequestError, match=re.escape(line.partition(" : ")[2].strip())):
                self.request(" ".join(words).partition(" : ")[0].split())
        elif verb == "step":
            for _ in range(int(words[0]) if words else 1):
                self.engine.step()
        elif verb == "run":
            self.engine.run()
        elif verb == "abort":
            assert self.engine.scheduler.abort(words[0]), "nothing to abort"
        elif verb == "expect":
            getattr(self, f"expect_{words[0]}")(*words[1:])
        else:
            raise ValueError(f"{self.path.name}: unknown verb {verb!r}")

    def request(self, words: list[str]) -> None:
        name, span, *options = words
        first, stop = map(int, span.split(".."))
        given = dict(zip(options[::2], options[1::2], strict=True))
        params = SamplingParams(
            max_tokens=int(given.pop("max", 4)), n=int(given.pop("n", 1)), beam_width=int(given.pop("beam", 0))
        )
        salt = given.pop("salt", "")
        assert not given, f"unknown options {given}"
        self.engine.add(name, range(first, stop), params, salt=salt)

    def names(self, sequences) -> list[str]:
        return list(dict.fromkeys(seq.request.id for seq in sequences))

    def expect_ran(self, *pairs: str) -> None:
        assert self.engine.last_step == {name: int(num) for name, num in (pair.split(":") for pair in pairs)}

    def expect_running(self, *names: str) -> None:
        assert self.names(self.engine.scheduler.running.values()) == list(names)

    def expect_waiting(self, *names: str) -> None:
        assert self.names(self.engine.scheduler.waiting) == list(names)

    def expect_done(self, *names: str) -> None:
        assert [n for n, r in self.engine.requests.items() if r.finished] == list(names)

    def expect_cached(self, name: str, tokens: str) -> None:
        assert self.engine.requests[name].num_cached_tokens == int(tokens)

    def expect_preempted(self, name: str, times: str) -> None:
        assert self.engine.requests[name].metrics.num_preemptions == int(times)

    def expect_computed(self, tokens: str) -> None:
        assert self.engine.model.computed == int(tokens)

    def expect_free(self, blocks: str) -> None:
        assert self.engine.kv.num_free_blocks == int(blocks)

    def expect_right(self, *names: str) -> None:
        for name in names:
            request = self.engine.requests[name]
            for index, tokens in enumerate(self.engine.outputs(name)):
                assert tokens == continuation(request.prompt, len(tokens), self.engine.spec, index), name
