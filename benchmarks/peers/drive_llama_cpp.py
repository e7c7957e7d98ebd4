"""llama.cpp on the cells of cells.py.

    cmake -B build -DCMAKE_BUILD_TYPE=Release -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF     # in its sources
    cmake --build build --target llama-bench llama-batched-bench llama-server
    python benchmarks/peers/made_up_tokenizer.py HF && python convert_hf_to_gguf.py HF --outtype bf16 --outfile GGUF
    OMP_NUM_THREADS=2 python benchmarks/peers/drive_llama_cpp.py GGUF --bin build/bin --json llama.json

HF is what checkpoint.py wrote. `--outtype f16` and `q8_0` make other weights (say so with --weights, which is recorded
alone). Standard library only.

    decode     llama-batched-bench: a sample is the mean step of --steps steps. One prompt is computed and its cache is
               copied to all sequences, so that each reads memory of its own
    prefill    llama-bench
    ttft       llama-server with one slot, as its client sees it
    mixed      llama-server with --slots slots, as its clients see it. Slots do not share prefixes at the same time

With --fa best, decode and prefill run with and without flash attention and the faster is told; the server has it on.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from cells import (
    ANSWERS,
    PROMPTS,
    QUESTION,
    Ask,
    Cell,
    Found,
    Options,
    Peer,
    options,
    options_parser,
    random_prompt,
    report,
    workload,
)

PAD = 256
"""llama.cpp rounds the room of a sequence up to a multiple of this."""


@dataclass(frozen=True)
class LlamaCpp:
    """A cells.Peer. bin: of its programs. fa: flash attention, on, off or best. ubatch: tokens in a computed part."""

    options: Options
    bin: Path
    fa: str
    ubatch: int
    slots: int

    def measure(self, c: Cell) -> list[Found]:
        if c.kind in ("decode", "prefill"):
            once = self._decode if c.kind == "decode" else self._prefill
            return [faster([once(c, fa) for fa in self._attention()])]
        return self._ttft(c) if c.kind == "ttft" else self._mixed(c)

    def _attention(self) -> Sequence[str]:
        if self.fa != "best":
            return (self.fa,)
        return ("on",) if self.options.kv.startswith("q") else ("on", "off")  # a quantised cache needs it

    def _common(self, fa: str) -> list[str]:
        o = self.options
        values = {"-m": o.model, "-t": o.threads, "-fa": fa, "-ctk": o.kv, "-ctv": o.kv, "-b": o.chunk}
        return [str(part) for pair in values.items() for part in pair] + ["-ub", str(self.ubatch)]

    def _decode(self, c: Cell, fa: str) -> Found:
        steps = self.options.steps
        prompt = max(1, c.tokens - steps // 2)
        room = c.batch * padded(prompt + steps)
        command = [*self._common(fa), "-tb", str(self.options.threads), "-c", str(room), "-pps"]
        command += ["-npp", str(prompt), "-ntg", str(steps)]
        command += ["-npl", ",".join([str(c.batch)] * (self.options.repeats + 1)), "--output-format", "jsonl"]
        lines = run(self.bin / "llama-batched-bench", command).splitlines()
        rounds = [json.loads(line) for line in lines if line.startswith("{")][1:]  # the first one is the warm-up
        if not rounds:
            raise RuntimeError("llama-batched-bench measured nothing")
        samples = [line["t_tg"] / line["tg"] * 1e3 for line in rounds]
        return Found(str(c), "step", "ms", samples, {"flash_attention": fa, "steps": steps})

    def _prefill(self, c: Cell, fa: str) -> Found:
        command = [*self._common(fa), "-p", str(c.tokens), "-n", "0", "-r", str(self.options.repeats), "-o", "json"]
        [found] = json.loads(run(self.bin / "llama-bench", command))
        seconds = [ns * 1e-9 for ns in found["samples_ns"]]
        facts = {"flash_attention": fa, "seconds": seconds}
        return Found(str(c), "prefill", "tokens/s", [c.tokens / s for s in seconds], facts)

    def _ttft(self, c: Cell) -> list[Found]:
        random = Random(0)
        cold, hit = (Found(str(c), kind, "s", [], {"cached_tokens": []}) for kind in ("cold", "hit"))
        with self._server(1, c.tokens + QUESTION + 1) as server:
            server.ask(Ask(random_prompt(server.vocab_size, min(c.tokens, self.options.chunk), random), 1))
            for _ in range(self.options.repeats):
                shared = random_prompt(server.vocab_size, c.tokens, random)
                for one in (cold, hit):
                    ask = Ask(shared + random_prompt(server.vocab_size, QUESTION, random), 1)
                    start = time.perf_counter()
                    answer = server.ask(ask)
                    one.samples.append(time.perf_counter() - start)
                    one.facts["cached_tokens"].append(answer["timings"].get("cache_n"))
        return [cold, hit]

    def _mixed(self, c: Cell) -> list[Found]:
        slots = min(self.slots, c.tokens)
        with self._server(slots, PROMPTS[1] + ANSWERS[1]) as server, ThreadPoolExecutor(c.tokens) as clients:
            asked = workload(c.tokens, server.vocab_size, server.max_position)
            server.ask(Ask(random_prompt(server.vocab_size, 64, Random(1)), 1))
            start = time.perf_counter()
            answers = list(clients.map(server.ask, asked))
            seconds = time.perf_counter() - start
        drawn, wanted = sum(answer["tokens_predicted"] for answer in answers), sum(ask.max_tokens for ask in asked)
        if drawn != wanted:
            raise RuntimeError(f"{drawn} tokens were answered instead of {wanted}")
        facts = {
            "prompt_tokens": sum(len(ask.prompt) for ask in asked),
            "output_tokens": wanted,
            "cached_tokens": sum(answer["timings"].get("cache_n", 0) for answer in answers),
            "slots": slots,
        }
        return [Found(str(c), "wall", "s", [seconds], facts)]

    @contextmanager
    def _server(self, slots: int, length: int) -> Iterator[Server]:
        """Of `slots` sequences of `length` tokens, ready; it ends with the block."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [*self._common("on" if self.fa == "best" else self.fa), "-tb", str(self.options.threads)]
        command += ["-c", str(slots * padded(length)), "-np", str(slots), "--port", str(port), "--host", "127.0.0.1"]
        with subprocess.Popen(
            [str(self.bin / "llama-server"), *command, "--no-ui", "--no-kv-unified", "--offline"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            try:
                yield ready(process, f"http://127.0.0.1:{port}")
            finally:
                process.terminate()


@dataclass(frozen=True)
class Server:
    url: str
    vocab_size: int
    max_position: int

    def ask(self, ask: Ask) -> dict[str, Any]:
        body = {
            "prompt": ask.prompt,
            "n_predict": ask.max_tokens,
            "ignore_eos": True,
            "temperature": 0.0,
            "top_k": 1,
            "cache_prompt": True,
        }
        headers = {"Content-Type": "application/json"}
        return fetch(Request(f"{self.url}/completion", json.dumps(body).encode(), headers))


def ready(process: subprocess.Popen[bytes], url: str, patience: float = 300) -> Server:
    """RuntimeError when it ends or takes longer than `patience` seconds."""
    end = time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        try:
            meta = fetch(Request(f"{url}/v1/models"))["data"][0]["meta"]
            return Server(url, meta["n_vocab"], meta["n_ctx_train"])
        except (URLError, OSError, KeyError, TypeError):
            time.sleep(0.2)
    raise RuntimeError(f"llama-server did not start (exit status {process.poll()})")


def fetch(request: Request) -> dict[str, Any]:
    with urlopen(request) as answer:
        values: dict[str, Any] = json.load(answer)
    return values


def run(program: Path, arguments: Sequence[str]) -> str:
    """What it printed. RuntimeError with its last words when it fails."""
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip())[-300:]
        raise RuntimeError(f"{program.name} failed ({done.returncode}): {words}")
    return done.stdout or done.stderr


def faster(found: Sequence[Found]) -> Found:
    """The others are told by their medians."""
    sign = 1 if found[0].unit == "ms" else -1
    best, *others = sorted(found, key=lambda one: sign * median(one.samples))
    best.facts["slower"] = {one.facts["flash_attention"]: median(one.samples) for one in others}
    return best


def padded(tokens: int) -> int:
    return -(-tokens // PAD) * PAD


def version(bin: Path) -> str:
    """As llama-bench tells it."""
    said = run(bin / "llama-bench", ["--version"])
    return said.partition("version: ")[2].partition("\n")[0] or said.strip()


def main() -> None:
    parser = options_parser(__doc__, ("f16", "bf16", "f32", "q8_0", "q4_0"), ("bf16", "f16", "q8_0"))
    parser.add_argument("--bin", type=Path, required=True, help="where llama-bench and the others are")
    parser.add_argument("--fa", choices=("best", "on", "off"), default="best", help="flash attention")
    parser.add_argument("--ubatch", type=int, default=512, help="tokens that are computed at once")
    parser.add_argument("--slots", type=int, default=64, help="sequences of the server for mixed")
    args = parser.parse_args()
    settings = options(parser, args)

    def start() -> Peer:
        return LlamaCpp(settings, args.bin, args.fa, args.ubatch, args.slots)

    report("llama.cpp", version(args.bin), settings, start, args.json, fa=args.fa, ubatch=args.ubatch)


if __name__ == "__main__":
    main()
