"""One answer without an end in constant memory: resident memory and blocks in use while a sequence grows.

nice python benchmarks/macro/endless.py [--tokens 200000] [--cache streaming=4+1020] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from kvtrove import LLM, SamplingParams
from kvtrove.demo import demo_model_dir
from kvtrove.plan.process import resident_bytes

EVERY = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--cache", default="streaming=4+1020")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    llm = LLM(str(demo_model_dir()), cache=args.cache, max_num_seqs=1, max_model_len=1024, num_blocks=40, threads=1)
    engine, rows = llm.llm_engine, []
    params = SamplingParams(max_tokens=args.tokens, ignore_eos=True, seed=0, detokenize=False, output_kind="delta")
    engine.add("endless", list(range(40, 90)), params)
    drawn, start = 0, time.perf_counter()
    while engine.has_unfinished_requests():
        drawn += sum(len(output.outputs[0].token_ids) for output in engine.step())
        if drawn % EVERY == 0 or drawn == 1:
            blocks = engine.kv.stats().used
            rows.append({"tokens": drawn, "resident_bytes": resident_bytes(), "blocks": blocks})
            print(rows[-1], f"{drawn / (time.perf_counter() - start):.0f} tokens/s", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"cache": args.cache, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
