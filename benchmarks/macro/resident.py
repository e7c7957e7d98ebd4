"""Is what a cache takes of memory what its bytes per token promise? Resident size before and after filling it.

    python benchmarks/macro/resident.py MODEL [--cache RECIPE] [--sequences 8] [--length 3072]

A short request comes first, so that what steps need is there already. Calibrations are read at the start.
"""

from __future__ import annotations

import argparse
import random

from kvtrove import LLM, SamplingParams
from kvtrove.plan.process import resident_bytes, return_freed_memory, return_large_buffers

WARM_UP = 600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--cache", default="auto")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=3072, help="tokens of a sequence")
    args = parser.parse_args()
    return_large_buffers()
    blocks = args.sequences * (args.length // 32 + 1) + WARM_UP // 32 + 1
    llm = LLM(
        args.model,
        cache=args.cache,
        max_num_seqs=8,
        max_num_batched_tokens=512,
        num_blocks=blocks,
        max_model_len=args.length + 32,
    )
    rng, once = random.Random(0), SamplingParams(max_tokens=1, temperature=0.0)

    def held_after(sequences: int, length: int) -> int:
        for _ in range(sequences):
            llm.generate([rng.randrange(300, 4000) for _ in range(length)], once, use_tqdm=False)
        return_freed_memory()
        return resident_bytes() or 0

    before = held_after(1, WARM_UP)
    grown = held_after(args.sequences, args.length) - before
    spec = llm.llm_engine.runner.cache
    planned, found = spec.block_bytes / spec.block_size, grown / (args.sequences * args.length)
    print(f"{args.cache}: {planned:,.0f} bytes per token planned, {found:,.0f} resident ({found / planned - 1:+.1%})")


if __name__ == "__main__":
    main()
