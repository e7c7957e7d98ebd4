"""What compacting a prompt takes beside computing it: CPU seconds of one thread, the two in turn, minima; and memory.

    python benchmarks/micro/compaction.py [--model demo | M1] [--layers 2] [--tokens 8192] [--cache keydiff=0.5 ...]

M1: layers of random weights in its shape, as many as --layers says. Each word gets an engine of its own. Words that
compact prefixes on demand (kvzip=0.3) compact the prompt that is cached by then. surrogate=0.3@FILE: where there is no
such file, a gate of random weights.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "macro"))

import torch
from random_model import SHAPES, write_random_model

from kvtrove import LLM, SamplingParams
from kvtrove.demo import demo_model_dir
from kvtrove.evaluate.calibrate import write
from kvtrove.evaluate.prefix import PROBES, compacted, on_demand
from kvtrove.kv.compaction.surrogate import CONSTANT, gate_name
from kvtrove.kv.recipe import recipe
from kvtrove.models.config_reader import read_spec
from kvtrove.plan.process import peak_bytes, reset_peak


def measured(model: str, words: str, num_tokens: int, repeat: int) -> tuple[float, float, float]:
    """Seconds of a prompt, and of its compaction; most that the process held, as a share of what the ledger expects."""
    alone = on_demand(recipe(words).compactor)
    llm = LLM(
        model, cache=words, max_model_len=num_tokens + (PROBES if alone else 64), max_num_seqs=4, kv="64MiB",
        tokenizer=str(demo_model_dir()), seed=0, warm_up=True, use_tqdm_on_load=False, enable_prefix_caching=alone,
    )  # fmt: skip
    engine = llm.llm_engine
    gather, spent = engine.runner.rows.gather, [0.0]

    def timed(op: object) -> None:
        start = time.thread_time()
        gather(op)
        spent[0] += time.thread_time() - start

    if not alone:
        engine.runner.rows.gather = timed
    prompt = [3 + i * 7919 % 4000 for i in range(num_tokens)]
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, detokenize=False)
    computing, compacting = [], []
    reset_peak()
    for _ in range(repeat):
        start, spent[0] = time.thread_time(), 0.0
        llm.generate([prompt], params, use_tqdm=False)
        computing.append(time.thread_time() - start - spent[0])
        if alone:
            start = time.thread_time()
            with compacted(engine, prompt):
                spent[0] = time.thread_time() - start
        compacting.append(spent[0])
    ledger = engine.ledger
    return min(computing), min(compacting), (peak_bytes() or 0) / ledger.peak if ledger else 0


def with_gate(words: str, model: str, directory: str) -> str:
    """The recipe, with a gate for this model where it names FILE and there is none."""
    if "@FILE" not in words or Path("FILE").exists():
        return words
    path, gate = f"{directory}/gate", {}
    for i, layer in enumerate(read_spec(Path(model)).layers):
        gate[gate_name(i)] = torch.randn(layer.kv.heads, layer.kv.k_dim + layer.kv.v_dim + CONSTANT)
    write(gate, path)
    return words.replace("@FILE", f"@{path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="demo, a directory, or one of " + ", ".join(SHAPES))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cache", nargs="+", default=["keydiff=0.5", "snapkv=0.2"])
    given = parser.parse_args()
    with TemporaryDirectory() as directory:
        model = str(demo_model_dir()) if given.model == "demo" else given.model
        if given.model in SHAPES:
            shape = replace(SHAPES[given.model], layers=given.layers)
            shape = replace(shape, context=max(shape.context, given.tokens + PROBES))
            model = str(write_random_model(Path(directory) / "model", shape, "bfloat16"))
        for words in given.cache:
            computing, compacting, held = measured(
                model, with_gate(words, model, directory), given.tokens, given.repeat
            )
            share = compacting / computing
            took = f"prefill {computing:7.2f} s   compaction {compacting * 1e3:7.1f} ms   {share:6.1%}"
            print(f"{words:24} {took}   held {held:.0%} of ledger")


if __name__ == "__main__":
    main()
