"""The same request gives the same tokens and the same log-probabilities, to the last bit, whatever is computed with it.

In bf16 on shapes of SmolLM2-135M, with default settings: greedy and seeded, alone, in a batch, on a warm cache, in
chunks, with a cache for one or two of them, and after a restart. Half of the prompts begin alike.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvtrove.config import EngineConfig
from kvtrove.engine import Engine
from kvtrove.request import SamplingParams
from tests.checkpoints import Checkpoints

SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 2,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
PROMPTS, NEW_TOKENS = 24, 8
WAYS = ({"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.95})
"""Greedy and seeded, two prompts each in turn."""
Answer = tuple[list[int], list[dict[int, float]]]


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)

    def draw(length: int) -> list[int]:
        return torch.randint(4, 300, (length,), generator=generator).tolist()

    shared = draw(40)
    return [shared * (i % 2) + draw(1 + i * 7 % 53) for i in range(PROMPTS)]


class Answers:
    """All answers of one engine to `count` prompts. `one_by_one`: each request has the engine to itself."""

    def __init__(self, directory: Path, count: int = PROMPTS, **settings: object) -> None:
        self.engine = Engine(EngineConfig(str(directory), device="cpu", block_size=16, **settings))  # type: ignore[arg-type]
        self.rounds, self.count = 0, count

    def __call__(self, one_by_one: bool = False) -> list[Answer]:
        self.rounds += 1
        found: dict[int, Answer] = {}
        for i, prompt in enumerate(prompts()[: self.count]):
            asked = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True, seed=i, logprobs=3, **WAYS[i // 2 % 2])  # type: ignore[arg-type]
            self.engine.add(f"{self.rounds}.{i}", prompt, asked)
            if one_by_one:
                self.finish(found)
        self.finish(found)
        return [found[i] for i in range(self.count)]

    def finish(self, found: dict[int, Answer]) -> None:
        while self.engine.has_unfinished_requests():
            for out in self.engine.step():
                if out.finished:
                    [it] = out.outputs
                    found[int(out.request_id.split(".")[1])] = (it.token_ids, it.logprobs)


def test_answers_do_not_depend_on_how_they_were_computed(checkpoints: Checkpoints) -> None:
    directory = checkpoints.get("llama", dtype="bfloat16", **SMOLLM2)
    alone = Answers(directory, enable_prefix_caching=False)(one_by_one=True)
    assert len({tuple(tokens) for tokens, _ in alone}) > PROMPTS // 2
    together = Answers(directory)
    assert together.engine.runner.model.precision.dtype == "bfloat16"
    assert together() == alone
    warm = together()
    assert warm == alone
    assert together.engine.stats().kv.hits > 0
    assert Answers(directory, max_num_batched_tokens=24, max_num_seqs=16)() == alone
    assert Answers(directory, num_blocks=9, max_model_len=112, max_num_seqs=16)() == alone


@pytest.mark.parametrize("family", ["deepseek_v3", "gemma4_moe"])
def test_layers_that_store_once_do_not_depend_on_the_batch(family: str, checkpoints: Checkpoints) -> None:
    """Latents, whose queries and results meet a matrix for every head, and keys that are values, in the kernels."""
    directory = checkpoints.get(family, dtype="bfloat16")
    alone = Answers(directory, 3, enable_prefix_caching=False)(one_by_one=True)
    chunked = Answers(directory, 3, max_num_batched_tokens=7, max_num_seqs=4)
    assert {backend.name for backend in chunked.engine.runner.backends} == {"cpu"}
    assert chunked() == alone
    assert chunked() == alone, "on a warm cache"
