"""Vectors against transformers; the same bits in chunks, beside others, after a preemption and on a warm cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvtrove.config import EngineConfig
from kvtrove.engine import Engine
from kvtrove.llm import LLM
from kvtrove.request import PoolingParams, RequestOutput, SamplingParams
from tests.golden.harness import hugging_face

POOLINGS = ("last", "mean", "cls")
LENGTHS = (1, 16, 47)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(4, 300, (n,), generator=generator).tolist() for n in LENGTHS]


def engine_for(directory: Path, **settings: Any) -> Engine:
    defaults = {"block_size": 4, "num_blocks": 200, "max_num_seqs": 4, "max_num_batched_tokens": 64, "check": 2}
    return Engine(EngineConfig(str(directory), **{**defaults, **settings}))


def pooled(engine: Engine, params: PoolingParams, beside: bool = False) -> list[RequestOutput]:
    """beside: while another request decodes, and others ask for other vectors."""
    if beside:
        engine.add("other", [5, 6, 7], SamplingParams(max_tokens=30, ignore_eos=True, temperature=0))
        engine.add("all", prompts()[2], PoolingParams("mean"))
    for i, prompt in enumerate(prompts()):
        engine.add(str(i), prompt, params)
    done: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests():
        done |= {out.request_id: out for out in engine.step() if out.finished}
    assert engine.stats().kv.used == 0, "an idle engine holds no block"
    return [done[str(i)] for i in range(len(LENGTHS))]


def vectors(outputs: list[RequestOutput]) -> list[np.ndarray]:
    return [out.pooled for out in outputs if out.pooled is not None]


@pytest.mark.parametrize("family", ["llama3", "gemma3"])
def test_hidden_states_are_those_of_transformers(checkpoints, family: str) -> None:
    """Float32 on both sides; sums are taken in another order, so they differ by some units of the last place."""
    directory = checkpoints.get(family)
    model = hugging_face(directory).model
    engine = engine_for(directory, dtype="float32")
    for pooling in POOLINGS:
        found = vectors(pooled(engine, PoolingParams(pooling, normalize=False)))
        for prompt, vector in zip(prompts(), found, strict=True):
            with torch.no_grad():
                hidden = model(torch.tensor([prompt])).last_hidden_state[0].double()
            expected = {"last": hidden[-1], "mean": hidden.mean(0), "cls": hidden[0]}[pooling].numpy()
            np.testing.assert_allclose(vector, expected, atol=2e-5 * abs(expected).max())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_same_bits_in_chunks_beside_others_and_on_a_warm_cache(checkpoints, pooling: str) -> None:
    directory = checkpoints.get("llama3", dtype="bfloat16")
    params = PoolingParams(pooling)
    engine = engine_for(directory)
    expected = pooled(engine, params)
    again, beside = pooled(engine, params), pooled(engine, params, beside=True)
    chunks = pooled(engine_for(directory, max_num_batched_tokens=7), params)
    preempted = pooled(engine_for(directory, num_blocks=24, max_num_batched_tokens=13), params, beside=True)
    for outputs in (again, beside, chunks, preempted):
        for one, other in zip(vectors(expected), vectors(outputs), strict=True):
            np.testing.assert_array_equal(one, other)
    assert [out.num_cached_tokens for out in again] == ([0, 12, 44] if pooling == "last" else [0, 0, 0])


def test_vectors_are_cut_before_they_are_normalised(checkpoints) -> None:
    engine = engine_for(checkpoints.get("llama3"), dtype="float32")
    raw, cut = pooled(engine, PoolingParams(normalize=False))[2], pooled(engine, PoolingParams(dimensions=5))[2]
    assert raw.pooled is not None
    assert cut.pooled is not None
    np.testing.assert_allclose(cut.pooled, raw.pooled[:5] / np.linalg.norm(raw.pooled[:5]), rtol=1e-6)


DOCUMENTS = ["the cache holds keys and values", "ein Block ist offen", "the quick brown fox"]


def test_scores_are_cosines_or_the_probability_of_yes(checkpoints) -> None:
    directory = checkpoints.get("llama3")
    model = hugging_face(directory)

    def llm(scoring: str) -> LLM:
        settings = {"block_size": 4, "num_blocks": 400, "max_num_seqs": 4, "max_num_batched_tokens": 64}
        return LLM(directory, use_tqdm_on_load=False, scoring=scoring, **settings)

    cosine = llm("cosine")
    with torch.no_grad():
        query, *rest = [
            model.model(torch.tensor([cosine.get_tokenizer().encode(text)])).last_hidden_state[0, -1]
            for text in ("the cache", *DOCUMENTS)
        ]
    expected = [torch.cosine_similarity(query, other, dim=0).item() for other in rest]
    found = cosine.score("the cache", DOCUMENTS, use_tqdm=False)
    assert [r.outputs.score for r in found] == pytest.approx(expected, abs=1e-5)

    asking = llm("yes-no")
    results = asking.score("the cache", DOCUMENTS, use_tqdm=False)
    yes, no = (asking.get_tokenizer().encode(word, add_special_tokens=False)[0] for word in ("yes", "no"))
    for result in results:
        with torch.no_grad():
            logits = model(torch.tensor([result.prompt_token_ids])).logits[0, -1]
        assert result.outputs.score == pytest.approx(logits[[yes, no]].softmax(0)[0].item(), abs=1e-5)
    shared = [r.num_cached_tokens for r in results]
    assert shared[0] == 0
    assert min(shared[1:]) > 100, "instruction and query are computed once"
