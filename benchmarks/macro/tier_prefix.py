"""What a tier is worth: time to the first token of a long prefix from disk and from memory, and the price of saving.

    python benchmarks/macro/tier_prefix.py MODEL --tokens 8192

Prints seconds to the first token, the disk's own rate for the same bytes (a plain read of the tier's files without the
page cache), and decode steps with and without a tier that saves behind them, in turn.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from kvtrove import LLM, SamplingParams
from kvtrove.engine import Engine


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


def steps_in_turn(engines: dict[str, Engine], steps: int, rng: random.Random) -> dict[str, float]:
    """Mean seconds of a decode step of each engine. They take their steps in turn, so that whatever else the machine
    does meets all of them.
    """
    params = SamplingParams(max_tokens=steps + 8, temperature=0, ignore_eos=True, detokenize=False)
    for name, engine in engines.items():
        engine.add(name, [rng.randrange(100, 20_000) for _ in range(64)], params)
        engine.step()
        engine.step()
    seconds = dict.fromkeys(engines, 0.0)
    for number in range(steps):
        for name in sorted(engines, reverse=bool(number % 2)):
            started = time.perf_counter()
            engines[name].step()
            seconds[name] += time.perf_counter() - started
    return {name: total / steps for name, total in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--decode", type=int, default=800, help="steps")
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
    settings["max_model_len"] = options.decode + 128
    with LLM(options.model, kv_dir=str(folder / "kv2"), **settings) as tiered:
        means = steps_in_turn({"with": tiered.llm_engine, "without": _beside(tiered)}, options.decode, rng)
    price = 100 * (means["with"] / means["without"] - 1)
    print(f"decode step         {1e3 * means['without']:.2f} ms, saving {1e3 * means['with']:.2f} ms: {price:+.1f} %")


def _beside(tiered: LLM) -> Engine:
    """An engine without tiers on the same weights."""
    engine = tiered.llm_engine
    return Engine(replace(engine.config, kv_dir=None), model=engine.runner.model)


if __name__ == "__main__":
    main()
