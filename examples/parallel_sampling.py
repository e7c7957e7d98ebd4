"""Several answers to one prompt: independent samples, or the best of a beam search. The prompt is computed once.

Run: python examples/parallel_sampling.py [MODEL]
"""

import sys

from kvtrove import LLM, SamplingParams

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "demo", max_model_len="1k")
messages = [{"role": "user", "content": "My name is Clara."}]

[samples] = llm.chat(messages, SamplingParams(n=4, temperature=1.0, seed=1, max_tokens=16))
print("four samples:")
for output in samples.outputs:
    print(f"  {output.index}: {output.text!r}")

[beams] = llm.chat(messages, SamplingParams(n=2, beam_width=4, length_penalty=0, max_tokens=16))
print("the best two of four beams:")
for output in beams.outputs:
    print(f"  {output.cumulative_logprob:8.2f}: {output.text!r}")
