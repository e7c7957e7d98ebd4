"""Several outputs from one prompt: independent samples, or the best of a beam search. The prompt is computed once.

Run: python examples/parallel_sampling.py [DIRECTORY_OF_A_CHECKPOINT]
"""

import sys

from kvtrove import LLM, SamplingParams
from kvtrove.demo import demo_model_dir

model = sys.argv[1] if len(sys.argv) > 1 else demo_model_dir()
llm = LLM(model, max_model_len="1k")
prompt = "The lighthouse keeper opened the door and"

[samples] = llm.generate(prompt, SamplingParams(n=4, temperature=1.0, seed=1, max_tokens=16))
print("four samples:")
for output in samples.outputs:
    print(f"  {output.index}: {output.text!r}")

[beams] = llm.generate(prompt, SamplingParams(n=2, beam_width=4, max_tokens=16))
print("the best two of four beams:")
for output in beams.outputs:
    print(f"  {output.cumulative_logprob:8.2f}: {output.text!r}")
