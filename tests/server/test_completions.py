"""POST /v1/completions over plain HTTP: all forms of prompts, echo and logprobs as lm-eval asks for them, beams."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import pytest

from tests.server.live import CONTEXT


def complete(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/completions", json={"model": "demo", "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def tokens_of(client: httpx.Client, text: str) -> list[int]:
    tokens: list[int] = client.post("/tokenize", json={"prompt": text}).json()["tokens"]
    return tokens


def test_text_and_token_ids_are_the_same_prompt(alice: httpx.Client) -> None:
    ids = tokens_of(alice, "Once upon a time")
    forms: list[Any] = ["Once upon a time", ["Once upon a time"], ids, [ids]]
    texts = {complete(alice, prompt=form, max_tokens=5)["choices"][0]["text"] for form in forms}
    assert len(texts) == 1


def test_several_prompts_answer_in_their_order(alice: httpx.Client) -> None:
    prompts = ["alpha", "beta", "gamma"]
    settings: dict[str, Any] = {"max_tokens": 4, "ignore_eos": True}
    together = complete(alice, prompt=prompts, **settings)
    alone = [complete(alice, prompt=prompt, **settings) for prompt in prompts]
    assert [c["text"] for c in together["choices"]] == [one["choices"][0]["text"] for one in alone]
    assert together["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone)
    assert together["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize("max_tokens", [1, 0])
def test_the_shape_that_lm_eval_reads(alice: httpx.Client, max_tokens: int) -> None:
    """It sends context + continuation as ids and sums token_logprobs[ctxlen:-1], or all of them without a new token."""
    context, continuation = tokens_of(alice, "The cache holds"), tokens_of(alice, " keys and values")
    answer = complete(alice, prompt=[context + continuation], max_tokens=max_tokens, logprobs=1, echo=True, seed=1234)
    logprobs = answer["choices"][0]["logprobs"]
    total = len(context) + len(continuation) + max_tokens
    assert {len(logprobs[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")} == {total}
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    end = total - max_tokens
    for chosen, top in zip(
        logprobs["token_logprobs"][len(context) : end], logprobs["top_logprobs"][len(context) : end], strict=True
    ):
        assert math.isfinite(chosen)
        assert max(top.values()) >= chosen
    assert "".join(logprobs["tokens"]) == answer["choices"][0]["text"]
    offsets = logprobs["text_offset"]
    assert offsets == [len("".join(logprobs["tokens"][:i])) for i in range(total)]


def test_probabilities_do_not_depend_on_who_computed_the_prompt(alice: httpx.Client) -> None:
    """Scoring computes every position again, whatever is cached."""
    body = {"prompt": "the same text, twice as long as one block of the cache. " * 3, "max_tokens": 1, "echo": True}
    first, second = (complete(alice, **body, logprobs=1)["choices"][0]["logprobs"] for _ in range(2))
    assert first["token_logprobs"] == second["token_logprobs"]


def test_echo_in_a_stream_comes_first(alice: httpx.Client) -> None:
    body = {
        "model": "demo",
        "prompt": "Say",
        "max_tokens": 3,
        "echo": True,
        "stream": True,
        "temperature": 0,
        "logprobs": 0,
    }
    with alice.stream("POST", "/v1/completions", json=body) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    whole = complete(alice, prompt="Say", max_tokens=3, echo=True, logprobs=0)["choices"][0]
    choices = [json.loads(line[6:])["choices"][0] for line in lines[:-1]]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [x for choice in choices for x in choice["logprobs"][name]] == whole["logprobs"][name]


def test_best_of_returns_the_likeliest(alice: httpx.Client) -> None:
    settings: dict[str, Any] = {"prompt": "Any", "max_tokens": 6, "temperature": 1.0, "seed": 11, "logprobs": 0}
    every = complete(alice, **settings, n=6)["choices"]
    best = complete(alice, **settings, best_of=6, n=2)

    def score(choice: dict[str, Any]) -> float:
        values = choice["logprobs"]["token_logprobs"]
        return sum(values) / len(values)

    expected = sorted(every, key=score, reverse=True)[:2]
    assert [choice["text"] for choice in best["choices"]] == [choice["text"] for choice in expected]
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert best["usage"]["completion_tokens"] == sum(len(c["logprobs"]["tokens"]) for c in every), (
        "all six were computed"
    )


def test_beam_search_finds_no_worse_than_greedy(alice: httpx.Client) -> None:
    settings: dict[str, Any] = {"prompt": "Beams", "max_tokens": 5, "logprobs": 0, "ignore_eos": True}
    greedy = complete(alice, **settings)["choices"][0]
    beams = complete(alice, **settings, use_beam_search=True, n=2, best_of=4)["choices"]
    sums = [sum(choice["logprobs"]["token_logprobs"]) for choice in (*beams, greedy)]
    assert sums[0] >= sums[1], "best first"
    assert sums[0] >= sums[2] - 1e-4


def test_stop_strings_and_tokens(alice: httpx.Client) -> None:
    text = complete(alice, prompt="Stop", max_tokens=20)["choices"][0]["text"]
    stop = text[4:6]
    cut = complete(alice, prompt="Stop", max_tokens=20, stop=[stop])["choices"][0]
    assert cut["text"] == text[: text.index(stop)]
    assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", stop)


def test_tokenize_and_back(alice: httpx.Client) -> None:
    text = "Grüße, 世界! \n\ttabs"
    answer = alice.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == CONTEXT
    assert alice.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": text}
    chat = alice.post("/tokenize", json={"messages": [{"role": "user", "content": "Hi"}]}).json()
    rendered = alice.post("/detokenize", json={"tokens": chat["tokens"]}).json()["prompt"]
    assert rendered == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_tokenizer_info_tells_what_lm_eval_needs(alice: httpx.Client) -> None:
    info = alice.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|im_end|>"
    assert info["pad_token"] == "<|pad|>"
    assert "message" in info["chat_template"]
