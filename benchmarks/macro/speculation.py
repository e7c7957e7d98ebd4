"""Tokens per second with and without drafts, interleaved: text that repeats its prompt, and text that does not.

    python benchmarks/macro/speculation.py MODEL [--speculation suffix] [--batch 1] [--rounds 5] [--json FILE]

Every round generates the same greedy answers with drafts (`on`) and without (`off`), on one engine and a warm
prefix cache; figures are medians over rounds. The tokens must be the same, which is checked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace

from kvtrove import LLM, SamplingParams

CODE = '''def load_settings(path, default=None, strict=False):
    """Read settings from a file and return them as a dictionary."""
    settings = dict(default or {})
    with open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            name, found, value = line.partition("=")
            if not found and strict:
                raise ValueError(f"{path}:{number}: no value for {name}")
            settings[name.strip()] = value.strip()
    return settings
'''
NEWS = (
    "The city council of Marlow decided on Tuesday to close the old bridge over the river to cars from the first of "
    "March. Cyclists and pedestrians may still cross it. The mayor, Helen Ward, said that the foundations of the "
    "bridge, which was built in 1832, had been damaged by lorries that ignored the weight limit. Repairs will cost "
    "four million pounds and take two years at least. Shop owners in the High Street fear that customers stay away."
)
REPEATS = {
    "code editing": f"Repeat this function with `strict` renamed to `exact`:\n```python\n{CODE}```",
    "quoting": f"Quote the following article word by word, then say who the mayor is.\n\n{NEWS}",
    "summarising": f"Summarise this article, sentence by sentence, in its own words.\n\n{NEWS}",
}
OTHERS = {
    "story": "Write a long story about a lighthouse keeper who finds a strange machine on the beach.",
    "explanation": "Explain in detail how the heart, the lungs and the blood work together.",
    "list": "Name twenty animals and say one interesting thing about each of them.",
}


def measure(llm: LLM, prompts: list[str], params: SamplingParams, rounds: int) -> dict[str, float]:
    """Median tokens per second of both ways, and what became of the drafts."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    tokens: dict[bool, list[list[int]]] = {}
    before = llm.llm_engine.stats().drafts
    for number in range(rounds + 1):
        for on in (True, False):
            start = time.perf_counter()
            results = llm.generate(prompts, replace(params, speculation=on), use_tqdm=False)
            elapsed = time.perf_counter() - start
            told = [result.outputs[0].token_ids for result in results]
            if tokens.setdefault(on, told) != told or (len(tokens) == 2 and tokens[True] != tokens[False]):
                raise SystemExit("the tokens are not the same: this is a bug, unless --linear is not own")
            if number:  # the first round fills the prefix cache
                seconds[on].append(elapsed)
    after = llm.llm_engine.stats().drafts
    assert before is not None
    assert after is not None
    drafted = after.num_draft_tokens - before.num_draft_tokens
    count = sum(map(len, tokens[True]))
    on, off = (count / statistics.median(seconds[way]) for way in (True, False))
    accepted = after.num_accepted_tokens - before.num_accepted_tokens
    return {
        "tokens": count, "on": round(on, 1), "off": round(off, 1), "ratio": round(on / off, 3),
        "drafted_per_round": drafted / (rounds + 1), "accepted": round(accepted / drafted, 3) if drafted else 0.0,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--speculation", default="ngram")
    parser.add_argument("--num-speculative-tokens", type=int, default=12)
    parser.add_argument("--linear", default="own")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    llm = LLM(
        args.model, speculation=args.speculation, num_speculative_tokens=args.num_speculative_tokens,
        linear=args.linear, max_model_len=2048, kv="512MiB", use_tqdm_on_load=False,
    )  # fmt: skip
    params = SamplingParams(temperature=0, max_tokens=args.max_tokens)
    found = {}
    for name, text in (REPEATS | OTHERS).items():
        prompts = [llm.chat_prompt([{"role": "user", "content": text}])] * args.batch
        found[name] = measure(llm, prompts, params, args.rounds)
        print(f"{name:14} {json.dumps(found[name])}", flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"settings": vars(args), "results": found}, file, indent=1)


if __name__ == "__main__":
    main()
