"""Computed KV travels between KVTrove and transformers, and both go on as if they had computed it themselves."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from kvtrove import LLM, SamplingParams
from kvtrove.config import ConfigError
from kvtrove.demo import demo_model_dir
from kvtrove.hf_cache import from_dynamic_cache, to_dynamic_cache
from kvtrove.request import RequestError

PROMPT = list(range(40, 140))
PARAMS = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, detokenize=False)


def started(**settings: object) -> LLM:
    return LLM(demo_model_dir(), dtype="float32", num_blocks=40, block_size=16, use_tqdm_on_load=False, **settings)


@torch.inference_mode()
def continued(model: torch.nn.Module, cache: DynamicCache, rest: list[int]) -> list[int]:
    """What transformers answers when it computes only `rest` behind the cache."""
    tokens, answer = torch.tensor([rest]), []
    for _ in range(8):
        logits = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
        answer.append(int(logits[0, -1].argmax()))
        tokens = torch.tensor([answer[-1:]])
    return answer


def test_both_ways_and_nothing_is_computed_twice() -> None:
    model = AutoModelForCausalLM.from_pretrained(demo_model_dir(), dtype=torch.float32).eval()
    with started() as llm:
        with pytest.raises(RequestError, match="nothing of this prompt is cached"):
            to_dynamic_cache(llm, PROMPT)
        [output] = llm.generate([PROMPT], PARAMS, use_tqdm=False)
        cache, tokens = to_dynamic_cache(llm, PROMPT)
        assert tokens == PROMPT[:96]
        assert continued(model, cache, PROMPT[96:]) == output.outputs[0].token_ids
        own = DynamicCache()
        with torch.inference_mode():
            model(input_ids=torch.tensor([PROMPT]), past_key_values=own, use_cache=True)
        assert from_dynamic_cache(llm, own, PROMPT, cache_salt="theirs") == 96
        theirs = {"prompt_token_ids": PROMPT, "cache_salt": "theirs"}
        [again] = llm.generate([theirs], PARAMS, use_tqdm=False)
        assert again.num_cached_tokens == 96
        assert again.outputs[0].token_ids == output.outputs[0].token_ids
        with pytest.raises(RequestError, match="not of one sequence of this model"):
            from_dynamic_cache(llm, _half(own), PROMPT)
    with started(cache="kivi=2") as llm, pytest.raises(ConfigError, match="holds keys after their rotation"):
        to_dynamic_cache(llm, PROMPT)


def _half(cache: DynamicCache) -> DynamicCache:
    """One with half of the heads."""
    half = DynamicCache()
    for index, layer in enumerate(cache.layers):
        half.update(layer.keys[:, :1], layer.values[:, :1], index)
    return half
