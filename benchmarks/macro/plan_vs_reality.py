"""Planned against measured memory: what the ledger says of an engine, and what the kernel says of its process.

    python benchmarks/macro/plan_vs_reality.py [--settings M1:4096x1:float32,...] [--dtype float32] [--json FILE]

Each setting (model : context x users : KV dtype) is a process of its own. It starts an engine of random weights with a
cache for exactly these users, fills the cache, and runs the largest steps again while every page of the cache is there.
The cache is filled by writing every byte of it, or with --requests by prompts that are really computed; the largest
steps (kvtrove.warmup) compute one layer of each kind, since activations of a layer are gone when the next one starts.

    planned     process + weights + kv + activations of the formula
    corrected   the same with the activations that the warm-up measured at start
    peak        most that the process held since the warm-up at start, as the kernel counts it

`process` is what interpreter and libraries hold, measured at start once they have worked.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from random_model import SHAPES, write_random_model

from kvtrove.cli.output import write_json

SETTINGS = (
    "M1:4096x1:float32,M1:8192x2:bfloat16,M1:16384x4:bfloat16,M1:4096x16:float32,M1:2048x64:float16,"
    "M3:2048x1:float32,M3:4096x1:bfloat16,M3:2048x4:bfloat16,M3:1024x8:float16,M3:4096x2:float32"
)
LONGEST_PROMPT = 1000


@dataclass(frozen=True)
class Setting:
    model: str
    context: int
    users: int
    cache: str

    @classmethod
    def parse(cls, text: str) -> Setting:
        model, size, cache = text.split(":")
        context, users = size.split("x")
        if model not in SHAPES:
            raise SystemExit(f"{text}: {model!r} is not one of {', '.join(SHAPES)}")
        return cls(model, int(context), int(users), cache)

    def __str__(self) -> str:
        return f"{self.model}:{self.context}x{self.users}:{self.cache}"


def measure(directory: Path, setting: Setting, dtype: str, requests: bool, tokens: int) -> dict[str, Any]:
    """In a process of its own: bytes of every line of the ledger, and the peak."""
    from kvtrove.config import EngineConfig
    from kvtrove.demo import demo_model_dir
    from kvtrove.engine import Engine
    from kvtrove.plan.activations import StepLimits
    from kvtrove.plan.process import peak_bytes, reset_peak
    from kvtrove.warmup import warm_up

    config = EngineConfig(
        str(directory),
        tokenizer=str(demo_model_dir()),
        dtype=dtype,
        device="cpu",
        cache=setting.cache,
        num_blocks=setting.users * -(-setting.context // 32),
        max_model_len=setting.context,
        max_num_seqs=setting.users,
        max_num_batched_tokens=tokens,
        warm_up=True,
    )
    engine = Engine(config)
    ledger = engine.ledger
    if not reset_peak() or ledger.planned_activations is None:
        raise SystemExit("the kernel does not let this process measure its peak")
    filled = _compute_prompts(engine) if requests else _write_rows(engine)
    requests_peak = peak_bytes()
    warm_up(engine.runner, StepLimits(tokens, setting.users, setting.context, setting.users * setting.context))
    planned = ledger.process + ledger.weights + ledger.kv + ledger.planned_activations
    peak = max(requests_peak or 0, peak_bytes() or 0)
    return {
        **{name: getattr(ledger, name) for name in ("process", "weights", "kv", "activations", "planned_activations")},
        "filled": filled,
        "planned": planned,
        "corrected": ledger.peak,
        "requests_peak": requests_peak,
        "peak": peak,
        "error_planned": planned / peak - 1,
        "error_corrected": ledger.peak / peak - 1,
    }


def _write_rows(engine: Any) -> str:
    engine.runner.arena.rows.fill_(0)
    return "every byte written"


def _compute_prompts(engine: Any) -> str:
    """Different prompts until no block was left untouched: blocks are evicted only when none is free."""
    from kvtrove.llm import LLM
    from kvtrove.request import SamplingParams

    llm, capacity, number = LLM.from_engine(engine), engine.kv.stats().num_blocks * engine.config.block_size, 0
    length = min(engine.max_model_len - 2, LONGEST_PROMPT)
    while engine.kv.stats().evictions == 0:
        prompt = [(number * 7919 + i) % 8000 for i in range(length)]
        params = SamplingParams(max_tokens=2, top_p=0.9, ignore_eos=True, seed=number)
        llm.generate([prompt], params, use_tqdm=False)
        number += 1
        if number * length > 4 * capacity:
            raise SystemExit("the cache does not fill")
    return f"{number} prompts of {length} tokens computed"


def run_all(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for text in arguments.settings.split(","):
            setting = Setting.parse(text)
            directory = Path(folder) / setting.model
            if not directory.exists():
                write_random_model(directory, SHAPES[setting.model], arguments.dtype)
            command = [sys.executable, __file__, "--one", str(directory), "--settings", text]
            command += ["--dtype", arguments.dtype, "--tokens", str(arguments.tokens)]
            command += ["--requests"] if arguments.requests else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results.append({**asdict(setting), **json.loads(done.stdout)})
            if arguments.json != "-":
                print(_line(results[-1]), flush=True)
    return results


HEAD = "setting | process | weights | kv | activations planned, measured | planned | corrected | peak | errors"


def _line(result: dict[str, Any]) -> str:
    def mib(name: str) -> str:
        return f"{result[name] / 2**20:.0f}"

    setting = f"{result['model']} {result['context']:,} x {result['users']} {result['cache']}"
    lines = [mib(name) for name in ("process", "weights", "kv")]
    lines += [f"{mib('planned_activations')}, {mib('activations')}", mib("planned"), mib("corrected"), mib("peak")]
    errors = f"{100 * result['error_planned']:+.1f} %, {100 * result['error_corrected']:+.1f} %"
    return f"| {' | '.join([setting, *lines, errors])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default=SETTINGS, help="comma-separated MODEL:CONTEXTxUSERS:KV_DTYPE")
    parser.add_argument("--dtype", default="float32", help="of the weights")
    parser.add_argument("--tokens", type=int, default=512, help="token budget of a step")
    parser.add_argument("--requests", action="store_true", help="fill the cache by computing prompts")
    parser.add_argument("--json", help="file for all figures; - is standard output, and nothing else is printed there")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        setting = Setting.parse(arguments.settings)
        print(json.dumps(measure(arguments.one, setting, arguments.dtype, arguments.requests, arguments.tokens)))
        return
    if arguments.json != "-":
        print(f"| {HEAD} |  (MiB)")
    results = run_all(arguments)
    if arguments.json:
        found = {"benchmark": "plan_vs_reality", "dtype": arguments.dtype, "settings": results}
        write_json(found, arguments.json)


if __name__ == "__main__":
    main()
