"""A sequence without an end in constant memory: resident memory, blocks in use and perplexity while it grows.

    nice python benchmarks/macro/endless.py [--model demo] [--tokens 200000] [--cache streaming=4+1020] [--every 10000]
                                            [--text] [--json FILE]

The model draws its own text at temperature 1, one token a step, or with --text reads docstrings of the standard
library, many tokens a step, from the beginning again where they end. Perplexity is that of each stretch: of the tokens
that were drawn, or of the text's own. CPU seconds leave out what other programs took.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import torch

from kvtrove import LLM, SamplingParams
from kvtrove.demo import demo_model_dir
from kvtrove.engine import Engine
from kvtrove.evaluate.fidelity import TeacherForced
from kvtrove.evaluate.text import read_text
from kvtrove.plan.process import resident_bytes

CHUNK = 128
"""Tokens of a step that reads text."""


def drawn(engine: Engine, num_tokens: int) -> Iterator[tuple[int, float]]:
    """Tokens so far, and the sum of their log-probabilities in nats."""
    params = SamplingParams(max_tokens=num_tokens, ignore_eos=True, seed=0, detokenize=False, output_kind="delta")
    engine.add("endless", list(range(40, 90)), params)
    count = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            count += len(output.outputs[0].token_ids)
            yield count, output.outputs[0].cumulative_logprob or 0.0


def read(engine: Engine, num_tokens: int) -> Iterator[tuple[int, float]]:
    text = engine.tokenizer.encode(read_text(None), add_special_tokens=False)
    tokens, total = list(islice(cycle(text), num_tokens + 1)), 0.0
    with torch.inference_mode(), TeacherForced(engine, tokens) as forced:
        for start in range(0, num_tokens, CHUNK):
            count = min(CHUNK, num_tokens - start)
            wanted = torch.tensor(tokens[start + 1 : start + count + 1])
            total -= float(torch.nn.functional.cross_entropy(forced.logits(count), wanted, reduction="sum"))
            yield start + count, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(demo_model_dir()), metavar="DIR")
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--cache", default="streaming=4+1020")
    parser.add_argument("--every", type=int, default=10_000, metavar="N", help="tokens of a stretch")
    parser.add_argument("--text", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    llm = LLM(args.model, cache=args.cache, max_num_seqs=1, max_model_len=1024, num_blocks=40, threads=1)
    engine, rows = llm.llm_engine, []
    start, work, last, before = time.perf_counter(), time.process_time(), 0, 0.0
    for count, total in (read if args.text else drawn)(engine, args.tokens):
        if count // args.every == last // args.every and last:
            continue
        rows.append(
            {
                "tokens": count,
                "resident_bytes": resident_bytes(),
                "blocks": engine.kv.stats().used,
                "perplexity": round(math.exp((before - total) / (count - last)), 2),
                "seconds": round(time.perf_counter() - start, 1),
                "cpu_seconds": round(time.process_time() - work, 1),
            }
        )
        last, before = count, total
        print(rows[-1], flush=True)
        if args.json:
            said = {"model": args.model, "cache": args.cache, "text": args.text, "rows": rows}
            args.json.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
