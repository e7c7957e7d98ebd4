"""An engine without a model: the interface of `kvtrove.engine.Engine`, answers made of thin air, faults on demand.

Also a server of its own for tests of processes, which starts in a moment because it loads no torch:

    python -m tests.server.fake_engine [--drain-timeout SECONDS] [--step-timeout SECONDS]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from kvtrove.config import EngineConfig
from kvtrove.demo import demo_model_dir
from kvtrove.engine_stats import EngineStats
from kvtrove.kv.stats import KVStats
from kvtrove.models.config_reader import read_spec
from kvtrove.request import (
    CompletionOutput,
    Guide,
    RequestError,
    RequestMetrics,
    RequestOutput,
    SamplingParams,
    SoftPin,
)
from kvtrove.text.tokenizer import Tokenizer

FATAL, ENDLESS = 3333, 2222
"""max_tokens of requests that end the engine of a process, or make it hang in native code."""


@dataclass
class _Request:
    id: str
    prompt: list[int]
    params: SamplingParams
    metrics: RequestMetrics
    done: int = 0


@dataclass
class FakeEngine:
    """Every running request gets one token per step, " word". `seats`: requests that run at once, the others wait.

    step_seconds: how long a step takes. before_step: called at the start of each, may raise. steps, log: what happened.
    """

    step_seconds: float = 0.0
    seats: int = 4
    max_model_len: int = 4096
    before_step: Callable[[], None] = lambda: None
    steps: int = 0
    log: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        directory = demo_model_dir()
        self.config = EngineConfig(str(directory), num_blocks=100, max_num_seqs=self.seats)
        self.spec, self.tokenizer = read_spec(directory), Tokenizer.load(directory)
        self.kv = SimpleNamespace(chain_root=lambda salt: b"fake" + salt)
        self.guard: Callable[[], Any] = nullcontext
        self._requests: dict[str, _Request] = {}

    def add(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        prompt: str | None = None,
        salt: str = "",
        guide: Guide | None = None,
        soft_pins: Sequence[SoftPin] = (),
        session: str = "",
        adapter: str = "",
    ) -> None:
        if 13 in prompt_token_ids:
            raise RequestError("prompt: this engine refuses token 13", "prompt")
        self.log.append(("add", request_id))
        metrics = RequestMetrics(time.monotonic())
        self._requests[request_id] = _Request(request_id, list(prompt_token_ids), params, metrics)

    def abort(self, request_id: str) -> bool:
        self.log.append(("abort", request_id))
        return self._requests.pop(request_id, None) is not None

    is_waiting = False
    adapters = ()

    def scope(self, salt: str, adapter: str = "") -> bytes:
        return salt.encode()

    tiering = SimpleNamespace(wake=None)

    def tend(self) -> bool:
        return False

    @property
    def longest_prompt(self) -> int:
        return self.max_model_len

    @property
    def is_endless(self) -> bool:
        return False

    def has_unfinished_requests(self) -> bool:
        return bool(self._requests)

    def step(self) -> list[RequestOutput]:
        with self.guard():
            self.before_step()
            time.sleep(self.step_seconds)
        self.steps += 1
        return [output for r in list(self._requests.values())[: self.seats] if (output := self._advance(r))]

    def _advance(self, r: _Request) -> RequestOutput | None:
        r.done += 1
        finished = r.done >= (r.params.max_tokens or 16)
        if finished:
            del self._requests[r.id]
        elif r.params.output_kind == "final_only":
            return None
        count = 1 if r.params.output_kind == "delta" else r.done
        outputs = [
            CompletionOutput(i, " word" * count, [5] * count, -1.0 * r.done, None, "length" if finished else None)
            for i in range(r.params.n)
        ]
        return RequestOutput(r.id, None, r.prompt, outputs, finished, 0, None, r.metrics)

    def reset_prefix_cache(self) -> int:
        return 0

    def stats(self) -> EngineStats:
        running = min(self.seats, len(self._requests))
        kv = KVStats(100, 100 - running, 0, running, 0, 0, 0, 0, 0, None)
        return EngineStats(running, len(self._requests) - running, 0, kv)


def main(arguments: Any) -> None:
    """Serve a fake engine until a signal."""
    from kvtrove.server import logs
    from kvtrove.server.app import create_app
    from kvtrove.server.auth import Keyring
    from kvtrove.server.run import address_of, bind, run
    from kvtrove.server.service import Service
    from kvtrove.server.settings import Limits, ServerSettings

    settings = ServerSettings(
        port=0,
        served_model_names=("demo",),
        drain_timeout=arguments.drain_timeout,
        limits=Limits(step_timeout=arguments.step_timeout),
    )
    listener = bind(settings, Keyring())
    engine = FakeEngine(step_seconds=0.01)

    def fail() -> None:
        for request in engine._requests.values():
            if request.params.max_tokens == FATAL:
                raise RuntimeError("asked for by the test")
            if request.params.max_tokens == ENDLESS:
                time.sleep(60)

    engine.before_step = fail
    service = Service(engine, settings)  # type: ignore[arg-type]
    logs.configure("info", as_json=True)
    print(f"{address_of(listener, settings)}/v1 serves demo", flush=True)
    run(create_app(service, Keyring()), service, listener, Keyring())


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--drain-timeout", type=float, default=60.0)
    parser.add_argument("--step-timeout", type=float, default=60.0)
    main(SimpleNamespace(**vars(parser.parse_args())))
