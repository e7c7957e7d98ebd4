"""Ask a batch of questions about the same notes. Prompts that begin alike are computed once.

Run: python examples/generate.py [MODEL]
"""

import sys

from kvtrove import LLM, SamplingParams

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "demo", max_model_len="1k")
notes = (
    "Remember these: The code of the red box is 4719. My name is Clara. The name of the turtle of Victor is Kavole. "
    "The code of the green door is 2051. The code of the blue drawer is 9036."
)
questions = [
    "What is the code of the green door?",
    "What is the name of the turtle of Victor?",
    "Do you know my name?",
]
past = [{"role": "user", "content": notes}, {"role": "assistant", "content": "I have read it."}]
asked = [[*past, {"role": "user", "content": question}] for question in questions]

for question, result in zip(questions, llm.chat(asked, SamplingParams(temperature=0, max_tokens=24)), strict=True):
    reused, total = result.num_cached_tokens, len(result.prompt_token_ids)
    print(f"{reused:3} of {total:3} prompt tokens reused: {question} {result.outputs[0].text}")
