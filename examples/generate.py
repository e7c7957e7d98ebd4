"""Complete a batch of prompts. Prompts that begin alike are computed once.

Run: python examples/generate.py [DIRECTORY_OF_A_CHECKPOINT]
"""

import sys

from kvtrove import LLM, SamplingParams
from kvtrove.demo import demo_model_dir

model = sys.argv[1] if len(sys.argv) > 1 else demo_model_dir()
llm = LLM(model, max_model_len="1k")

instruction = (
    "Continue the story in one sentence, in the style of a fairy tale that grandparents tell by the fire in winter, "
    "without any names of real places, without any modern things, and with a good end for everybody who was kind. "
)
prompts = [instruction + opening for opening in ("Once upon a time", "Behind the mill", "In the last winter")]

for result in llm.generate(prompts, SamplingParams(temperature=0.8, seed=7, max_tokens=24)):
    reused, total = result.num_cached_tokens, len(result.prompt_token_ids)
    print(f"{reused:3} of {total:3} prompt tokens reused: {result.outputs[0].text!r}")
