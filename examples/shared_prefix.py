"""The same long document, asked about twice: the second time its K/V come from the cache.

Run: python examples/shared_prefix.py [DIRECTORY_OF_A_CHECKPOINT]
"""

import sys
import time

from kvtrove import LLM, SamplingParams
from kvtrove.demo import demo_model_dir

model = sys.argv[1] if len(sys.argv) > 1 else demo_model_dir()
llm = LLM(model, max_model_len="2k")
one_token = SamplingParams(temperature=0, max_tokens=1)
tokenizer = llm.get_tokenizer()

room = llm.llm_engine.max_model_len - 64
document = tokenizer.encode("A block is open, then sealed. Only a sealed block can be shared. " * 200)[:room]


def ask(question: str) -> tuple[float, int]:
    """Seconds to the first token, and how many prompt tokens were reused."""
    start = time.perf_counter()
    [result] = llm.generate(
        [document + tokenizer.encode(question, add_special_tokens=False)], one_token, use_tqdm=False
    )
    return time.perf_counter() - start, result.num_cached_tokens


llm.generate("The first request of a process is slower than the others.", one_token, use_tqdm=False)
cold, reused_cold = ask("What is a block?")
warm, reused_warm = ask("When can it be shared?")
print(f"cold: {1000 * cold:7.1f} ms to the first token, {reused_cold:5} of {len(document)} document tokens reused")
print(f"warm: {1000 * warm:7.1f} ms to the first token, {reused_warm:5} of {len(document)} document tokens reused")
