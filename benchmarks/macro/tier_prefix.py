"""What a tier is worth: time to the first token of a long prefix from disk and from memory, and the price of saving.

    python benchmarks/macro/tier_prefix.py MODEL --tokens 8192

Prints seconds to the first token, the disk's own rate for the same bytes (a plain read of the tier's files without the
page cache), and decode speed with and without a tier that saves behind every step, interleaved.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from kvtrove import LLM, SamplingParams


def first_token(llm: LLM, prompt: list[int]) -> tuple[float, dict[str, int]]:
    started = time.perf_counter()
    [output] = llm.generate([prompt], SamplingParams(max_tokens=1, temperature=0, detokenize=False), use_tqdm=False)
    assert output.metrics is not None
    return time.perf_counter() - started, output.metrics.reused_from


def drop_page_cache(folder: Path) -> None:
    for file in folder.rglob("*.rows"):
        with file.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def plain_rate(folder: Path) -> float:
    """Bytes per second of reading the tier's files from the disk, 4 MiB at a time."""
    drop_page_cache(folder)
    started, nbytes = time.perf_counter(), 0
    buffer = bytearray(4 << 20)
    for file in folder.rglob("*.rows"):
        with file.open("rb", buffering=0) as handle:
            while count := handle.readinto(buffer):
                nbytes += count
    return nbytes / (time.perf_counter() - started)


def decode_rate(llm: LLM, prompt: list[int], tokens: int) -> float:
    """Tokens per second of one answer behind the first token."""
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False)
    [output] = llm.generate([prompt], params, use_tqdm=False)
    assert output.metrics is not None
    times = output.metrics.token_times
    return 1 / statistics.median(b - a for a, b in itertools.pairwise(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rng = random.Random(1)
    prompt = [rng.randrange(100, 20_000) for _ in range(options.tokens)]
    folder = Path(tempfile.mkdtemp(prefix="tier"))
    settings = {"max_model_len": options.tokens + 256, "use_tqdm_on_load": False, "kv": "2GiB"}
    with LLM(options.model, kv_dir=str(folder / "kv"), **settings) as llm:
        row_bytes = llm.llm_engine.kv.spec.block_bytes
        cold, _ = first_token(llm, prompt)
        while llm.llm_engine.tend():
            llm.llm_engine.tiering.rest()
        warm = min(first_token(llm, prompt)[0] for _ in range(options.rounds))
        disk, cached, took = [], [], {}
        for drop in [True, False] * options.rounds:
            llm.reset_prefix_cache()
            if drop:
                drop_page_cache(folder)
            seconds, took = first_token(llm, prompt)
            (disk if drop else cached).append(seconds)
        rate = plain_rate(folder)
    nbytes = took.get("disk", 0) // llm.llm_engine.config.block_size * row_bytes
    print(f"computed            {cold:.2f} s")
    print(f"from memory         {warm:.3f} s")
    tokens = took.get("disk", 0)
    print(f"from disk           {min(disk):.3f} s, {tokens} tokens, {nbytes / 1e6:.0f} MB")
    print(f"from page cache     {min(cached):.3f} s")
    bound = 1.3 * warm + nbytes / rate
    print(f"1.3 x memory + bytes / {rate / 1e9:.2f} GB/s = {bound:.3f} s")
    with LLM(options.model, kv_dir=str(folder / "kv2"), **settings) as tiered:
        plain = LLM.from_engine(_beside(tiered))
        rates: dict[str, list[float]] = {"without": [], "with": []}
        for number in range(2 * options.rounds + 2):
            short = [rng.randrange(100, 20_000) for _ in range(64)]
            name, llm = ("with", tiered) if number % 2 else ("without", plain)
            rates[name].append(decode_rate(llm, short, options.decode))
        without, saving = (max(found[1:]) for found in rates.values())
    price = 100 * (1 - saving / without)
    print(f"decode              {without:.1f} tokens/s, saving {saving:.1f} tokens/s: {price:+.1f} %")


def _beside(tiered: LLM):
    """An engine without tiers on the same weights."""
    from dataclasses import replace

    from kvtrove.engine import Engine

    engine = tiered.llm_engine
    return Engine(replace(engine.config, kv_dir=None), model=engine.runner.model)


if __name__ == "__main__":
    main()
