"""The same long document, asked about twice: the second time its K/V come from the cache.

Run: python examples/shared_prefix.py [MODEL]
"""

import sys
import time

from kvtrove import LLM, SamplingParams

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "demo", max_model_len="2k")
params = SamplingParams(temperature=0, max_tokens=16)
filler = "A block is open, then sealed. Only a sealed block can be shared. "
document = filler * 30 + "The name of the turtle of Victor is Kavole. The code of the red box is 4719. " + filler * 30


def ask(question: str) -> None:
    """Print how long the answer took, how many prompt tokens were reused, and the answer."""
    start = time.perf_counter()
    past = [{"role": "user", "content": document}, {"role": "assistant", "content": "I have read it."}]
    [result] = llm.chat([*past, {"role": "user", "content": question}], params, use_tqdm=False)
    seconds = time.perf_counter() - start
    print(f"{1000 * seconds:7.1f} ms, {result.num_cached_tokens:5} of {len(result.prompt_token_ids)} tokens reused")
    print(f"  {question} {result.outputs[0].text}")


llm.chat([{"role": "user", "content": "The first request of a process is slower than the others."}], use_tqdm=False)
ask("What is the code of the red box?")
ask("What is the name of the turtle of Victor?")
