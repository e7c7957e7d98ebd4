"""Decode steps and prompts of GGUF files beside llama.cpp: both in memory at the same time, round after round in turn.

    pip download --no-binary :all: --no-deps llama-cpp-python && tar xf llama_cpp_python-*.tar.gz    # its sources
    cmake -B build -S llama_cpp_python-*/vendor/llama.cpp -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \\
          -DLLAMA_CURL=OFF -DCMAKE_CXX_FLAGS="-include $PWD/benchmarks/peers/llama_cpp_amx.h"
    cmake --build build --target llama      # then llama_cpp_steps.cpp, as its head says
    steps quantise MODEL-bf16.gguf MODEL-Q4_0.gguf 2
    python benchmarks/peers/gguf_beside_llama_cpp.py MODEL-Q4_0.gguf ... --peer amx=steps --peer vectors=steps-vectors

llama.cpp's best is the faster of its builds: with tiles, where there are any; and with "-mno-amx-tile -mno-amx-int8" in
CMAKE_C_FLAGS and CMAKE_CXX_FLAGS, whose weights are repacked for vectors. For each file:

    prompt     tokens/s of a prompt of --tokens tokens, nothing cached, one row of logits
    decode     tokens/s of one sequence behind 16 tokens; ours draws each token, too
    share      of plain reading: bytes of the weights in memory / (step * bandwidth), both by the same threads

The best prompt of --rounds and the best step count, which bears neighbours. `ratio` is ours to the best of the peers.
Several threads that wait by spinning suffer from anything that runs beside them: measure those on an idle machine.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch

from kvtrove.bench.engine.limits import READ, READ_BYTES, Limits
from kvtrove.cli.output import write_json
from kvtrove.config import EngineConfig
from kvtrove.engine import Engine
from kvtrove.plan.source import read_model
from kvtrove.request import SamplingParams

OWN = "kvtrove"
STEPS = 32
"""Decode steps of a round."""
CONTEXT = 16
"""Tokens behind which they are taken."""


class Stepped(Protocol):
    """Both return seconds: of all tokens, and of the least of some steps."""

    def prompt(self, tokens: int) -> float: ...

    def decode(self, steps: int) -> float: ...

    def close(self) -> None: ...


class Own:
    """This engine, told to step."""

    def __init__(self, model: Path, threads: int, weights: str) -> None:
        sizes = {"max_num_seqs": 4, "max_model_len": 2048, "num_blocks": 512}
        self.engine = Engine(EngineConfig(str(model), weights=weights, threads=threads, **sizes))
        self.random, self.number = Random(0), 0
        self.vocab = self.engine.runner.model.spec.vocab_size

    def prompt(self, tokens: int) -> float:
        self.engine.abort(str(self.number))
        while self.engine.has_unfinished_requests():
            self.engine.step()
        self.engine.reset_prefix_cache()
        self.number += 1
        prompt = [self.random.randrange(self.vocab) for _ in range(tokens)]
        begin = time.perf_counter()
        self.engine.add(str(self.number), prompt, SamplingParams(temperature=0, max_tokens=999, ignore_eos=True))
        while not self.engine.step():
            pass
        return time.perf_counter() - begin

    def decode(self, steps: int) -> float:
        least = float("inf")
        for _ in range(steps):
            begin = time.perf_counter()
            self.engine.step()
            least = min(least, time.perf_counter() - begin)
        return least

    def close(self) -> None:
        self.engine.close()


class Peer:
    """llama_cpp_steps.cpp."""

    def __init__(self, program: Path, model: Path, threads: int) -> None:
        command = [str(program.resolve()), str(model), str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def _ask(self, line: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
        return float(answer)

    def prompt(self, tokens: int) -> float:
        return self._ask(f"prompt {tokens}")

    def decode(self, steps: int) -> float:
        return self._ask(f"decode {steps}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def measure(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The row of one file."""
    running: dict[str, Stepped] = {OWN: Own(model, args.threads, args.weights)}
    running |= {name: Peer(program, model, args.threads) for name, program in args.peer}
    limits = Limits((), "cpu", time.perf_counter)
    best: dict[tuple[str, str], float] = defaultdict(lambda: float("inf"))
    try:
        for _ in range(args.rounds):
            limits.sample()
            for name, one in running.items():
                best["prompt", name] = min(best["prompt", name], one.prompt(args.tokens))
                one.prompt(CONTEXT)
                best["decode", name] = min(best["decode", name], one.decode(STEPS))
    finally:
        for one in running.values():
            one.close()
    packed = read_model(model, weights=args.weights).active_weight_bytes()
    bandwidth = READ_BYTES / min(limits.samples.values[READ])
    found: dict[str, Any] = {"model": model.name, "weights": args.weights, "threads": args.threads}
    for kind, tokens in (("prompt", args.tokens), ("decode", 1)):
        rates = {name: tokens / best[kind, name] for name in running}
        found |= {f"{kind}.{name}": rate for name, rate in rates.items()}
        others = [rate for name, rate in rates.items() if name != OWN]
        found[f"{kind}.ratio"] = rates[OWN] / max(others) if others else None
    found |= {"packed_bytes": packed, "read_gb_per_s": bandwidth * 1e-9}
    return found | {"share": packed / bandwidth / best["decode", OWN]}


def named(text: str) -> tuple[str, Path]:
    name, _, program = text.rpartition("=")
    if not Path(program).is_file():
        raise argparse.ArgumentTypeError(f"{program} is no program; write NAME=steps")
    return name or Path(program).name, Path(program)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="+", help="GGUF files")
    parser.add_argument("--peer", type=named, action="append", default=[], metavar="NAME=STEPS")
    parser.add_argument("--weights", default="gguf", help="of this engine")
    parser.add_argument("--tokens", type=int, default=512, help="of a prompt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--json", default="-", help="a file instead of stdout")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = []
    for model in args.model:
        found.append(measure(model, args))
        row = "  ".join(f"{name} {value:.4g}" for name, value in found[-1].items() if isinstance(value, float))
        print(f"{model.name}  {row}", file=sys.stderr, flush=True)
    write_json(found, args.json, indent=1)


if __name__ == "__main__":
    main()
