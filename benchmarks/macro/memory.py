"""Does the memory of an engine grow? Mixed short requests in a loop, and the resident size every so many of them.

    python benchmarks/macro/memory.py [--requests 100000] [--every 1000] [--model DIR] [--kinds plain,beam,...]

A bare engine in this process, with a cache that is full early on. Says at the end what malloc holds (`mallinfo2`), what
Python's objects count, and the ledger's own estimate.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from kvtrove import LLM, SamplingParams
from kvtrove.demo import demo_model_dir
from kvtrove.plan.process import resident_bytes

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 0.0},
    "seeded": {"temperature": 0.9, "top_p": 0.9},
    "logprobs": {"temperature": 0.0, "logprobs": 5},
    "several": {"n": 3},
    "beam": {"beam_width": 3, "n": 2},
    "penalised": {"repetition_penalty": 1.2, "frequency_penalty": 0.3},
    "biased": {"logit_bias": {5: 3.0}, "min_tokens": 2},
}
WORDS = ("the", "cache", "holds", "keys", "and", "values", "of", "every", "token", "that", "a", "model", "has", "read")


def one(rng: random.Random, kinds: list[str]) -> tuple[str, SamplingParams]:
    words = [rng.choice(WORDS) + str(rng.randrange(10**6)) * (rng.random() < 0.2) for _ in range(rng.randrange(2, 60))]
    return " ".join(words), SamplingParams(max_tokens=rng.randrange(2, 12), **KINDS[rng.choice(kinds)])


def malloc_info() -> dict[str, int]:
    """Bytes of glibc's allocator: got from the system for small things, mapped for large ones, in use, free."""

    class Info(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
        )]  # fmt: skip

    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Info
    info = mallinfo2()
    return {"arenas": info.arena, "mapped": info.hblkhd, "in_use": info.uordblks, "free": info.fordblks}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--every", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--model", default=str(demo_model_dir()))
    parser.add_argument("--linear", default="own")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--json", default="-", help="file to write, - for standard output")
    args = parser.parse_args()
    rng, kinds = random.Random(0), args.kinds.split(",")
    llm = LLM(args.model, kv="16MiB", linear=args.linear, warm_up=True, use_tqdm_on_load=False)
    rss, done, deadline = [resident_bytes() or 0], 0, time.monotonic() + args.seconds
    while done < args.requests and time.monotonic() < deadline:
        asked = [one(rng, kinds) for _ in range(min(args.every, 50))]
        llm.generate([text for text, _ in asked], [params for _, params in asked], use_tqdm=False)
        done += len(asked)
        if done % args.every == 0:
            rss.append(resident_bytes() or 0)
            print(f"{done} {rss[-1] / 2**20:.1f} MiB {malloc_info()}", file=sys.stderr, flush=True)
    ledger = llm.llm_engine.ledger
    settled = rss[5000 // args.every : 5000 // args.every + 1] or rss[-1:]
    result = {
        "benchmark": "memory of a bare engine",
        "requests": done,
        "linear": args.linear,
        "rss_mib": [round(size / 2**20, 1) for size in rss],
        "growth_after_5000": round(rss[-1] / settled[0] - 1, 4),
        "ledger_peak_mib": round(ledger.peak / 2**20, 1),
        "malloc": malloc_info(),
        "objects": len(gc.get_objects()),
    }
    text = json.dumps(result) + "\n"
    if args.json == "-":
        sys.stdout.write(text)
    else:
        Path(args.json).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
