"""Drafts change how many tokens a step yields, never which: every kind of request, with and without."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvtrove import LLM, SamplingParams
from kvtrove.demo import demo_model_dir

REPEAT = "The code of the red box is 4719. The code of the blue box is 2203. The code of the red box is"
TEXTS = [REPEAT, "one two three one two three one two", "Once upon a time"]
KINDS = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 0.8, "seed": 5},
    "filtered": {"temperature": 1.2, "seed": 6, "top_p": 0.9, "top_k": 20, "min_p": 0.01},
    "penalties": {"temperature": 0.7, "seed": 7, "repetition_penalty": 1.1, "presence_penalty": 0.2},
    "frequency, greedy": {"temperature": 0, "frequency_penalty": 0.3},
    "logit bias": {"temperature": 0, "logit_bias": {10: 2.0, 11: -3.0}},
    "min_tokens": {"temperature": 0, "min_tokens": 30},
    "stop string": {"temperature": 0, "stop": ["box", "o", "e"], "logprobs": 0},
    "stop string included": {"temperature": 0.3, "seed": 1, "stop": ["the", "."], "include_stop_str_in_output": True},
    "logprobs": {"temperature": 0.5, "seed": 2, "logprobs": 3, "prompt_logprobs": 1},
    "ignore_eos": {"temperature": 0, "ignore_eos": True, "logprobs": 1},
    "n": {"temperature": 0.6, "seed": 3, "n": 3},
    "beams": {"temperature": 0, "beam_width": 3},
}
SETTINGS = {"linear": "own", "check": 2, "use_tqdm_on_load": False, "max_model_len": 512, "seed": 0}


def engine(**settings) -> LLM:
    return LLM(str(demo_model_dir()), **(SETTINGS | {"num_blocks": 200} | settings))


@pytest.fixture(scope="module")
def plain() -> LLM:
    return engine()


def told(llm: LLM, requests: list[tuple[str, SamplingParams]]) -> list[tuple]:
    results = llm.generate([text for text, _ in requests], [params for _, params in requests], use_tqdm=False)
    return [
        (o.token_ids, o.text, o.finish_reason, o.stop_reason, o.cumulative_logprob, o.logprobs)
        for result in results
        for o in result.outputs
    ]


def asked(name: str) -> list[tuple[str, SamplingParams]]:
    return [(text, SamplingParams(**({"max_tokens": 32} | KINDS[name]))) for text in TEXTS]


@pytest.fixture(scope="module")
def without_drafts(plain) -> dict[str, list[tuple]]:
    return {name: told(plain, asked(name)) for name in KINDS}


@pytest.mark.parametrize("method", ["ngram", "suffix"])
def test_every_kind_of_request_gets_the_tokens_it_gets_without_drafts(without_drafts, method):
    drafting = engine(speculation=method)
    for name, expected in without_drafts.items():
        requests = asked(name)
        assert told(drafting, requests) == expected, name
        alone = told(drafting, requests[:1])
        assert alone == expected[: len(alone)], f"{name}, alone, on a warm cache"
    stats = drafting.llm_engine.stats().drafts
    assert stats is not None
    assert stats.num_accepted_tokens > 80
    assert stats.num_accepted_tokens < stats.num_draft_tokens


def test_preempted_chunked_and_in_a_batch_of_all_kinds():
    mixed = [request for name in KINDS if name != "beams" for request in asked(name)[:2]]
    expected = told(
        engine(block_size=8, num_blocks=800, max_model_len=256), mixed
    )  # last bits depend on the block size
    tight = engine(
        speculation="suffix", num_blocks=40, max_model_len=256, max_num_seqs=12, max_num_batched_tokens=24, block_size=8
    )
    assert told(tight, mixed) == expected
    stats = tight.llm_engine.stats()
    assert stats.num_preemptions > 0
    assert stats.drafts is not None
    assert stats.drafts.num_accepted_tokens > 0


def test_a_request_may_do_without(plain):
    drafting = engine(speculation="ngram")
    params = SamplingParams(temperature=0, max_tokens=40, speculation=False)
    assert told(drafting, [(REPEAT, params)]) == told(plain, [(REPEAT, replace(params, speculation=None))])
    stats = drafting.llm_engine.stats().drafts
    assert stats is not None
    assert stats.num_drafts == 0
    with pytest.raises(ValueError, match="--speculation ngram"):
        plain.generate(REPEAT, replace(params, speculation=True), use_tqdm=False)
