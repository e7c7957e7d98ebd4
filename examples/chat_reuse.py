"""A conversation. Every turn repeats the whole past, and the cache still has it: `num_cached_tokens` grows.

Run: python examples/chat_reuse.py [DIRECTORY_OF_A_CHECKPOINT]
"""

import sys

from kvtrove import LLM, SamplingParams
from kvtrove.demo import demo_model_dir

model = sys.argv[1] if len(sys.argv) > 1 else demo_model_dir()
llm = LLM(model, block_size=16)
params = SamplingParams(temperature=0, max_tokens=32)

messages = [{"role": "system", "content": "You explain computers to curious people, briefly and without jargon."}]
for question in ("What is a cache?", "Why is it small?", "Who decides what leaves it?", "Thank you!"):
    messages.append({"role": "user", "content": question})
    [result] = llm.chat(messages, params, use_tqdm=False)
    messages.append({"role": "assistant", "content": result.outputs[0].text})
    num_prompt, num_cached = len(result.prompt_token_ids), result.num_cached_tokens
    print(f"{question:28} {num_prompt:4} prompt tokens, {num_cached:4} reused, {num_prompt - num_cached:4} computed")
