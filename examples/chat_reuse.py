"""A conversation. Every turn repeats the whole past, and the cache still has it: `num_cached_tokens` grows.

Run: python examples/chat_reuse.py [MODEL]
"""

import sys

from kvtrove import LLM, SamplingParams

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "demo", block_size=16)
params = SamplingParams(temperature=0, max_tokens=32)

messages = []
for said in (
    "Remember that the code of the red box is 4719.",
    "My name is Clara.",
    "What is the code of the red box?",
    "Do you know my name?",
    "Thank you!",
):
    messages.append({"role": "user", "content": said})
    [result] = llm.chat(messages, params, use_tqdm=False)
    answer = result.outputs[0].text
    messages.append({"role": "assistant", "content": answer})
    num_prompt, num_cached = len(result.prompt_token_ids), result.num_cached_tokens
    print(f"> {said}\n{answer}")
    print(f"{num_prompt:4} prompt tokens, {num_cached:4} reused, {num_prompt - num_cached:4} computed\n")
