"""Sampling fields at their extremes: refused with the field and its bound, or served; the engine answers afterwards."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kvtrove.config import EngineConfig
from kvtrove.demo import demo_model_dir
from kvtrove.engine import Engine
from kvtrove.llm import LLM
from kvtrove.request import RequestError, SamplingParams
from tests.server.in_process import App, running_app

VOCAB = 8192
COMPLETIONS, CHAT, MESSAGES, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses"
JSON = {"content-type": "application/json"}
HELLO = [{"role": "user", "content": "Hi"}]
BODIES: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "Hi there", "max_tokens": 3},
    CHAT: {"messages": HELLO, "max_tokens": 3},
    MESSAGES: {"messages": HELLO, "max_tokens": 8},
    RESPONSES: {"input": "Hi", "max_output_tokens": 3},
}
BEAMS = {"n": 2, "use_beam_search": True, "temperature": 0}
CALL = {"tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "any"}}
FORMAT = {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}}}

REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    # (route, field that the error names, fields)
    *((COMPLETIONS, "logit_bias", {"temperature": 1, "logit_bias": {"5": bias}}) for bias in (1e39, 10**300, 10**400)),
    *((COMPLETIONS, "logit_bias", {"logit_bias": {"5": 3e38}, "temperature": t}) for t in (0.1, 2e-5)),
    *((COMPLETIONS, "logit_bias", {"logit_bias": {"5": 1e39}, **limit}) for limit in ({"top_p": 0.5}, {"top_k": 5})),
    (CHAT, "logit_bias", {"logit_bias": {"5": -1e30}}),
    *((COMPLETIONS, "repetition_penalty", {"repetition_penalty": r}) for r in (1e-39, 1e-33, 0, 101)),
    *((COMPLETIONS, "length_penalty", {**BEAMS, "length_penalty": p}) for p in (1e308, -1e308, 1000, 400, -400, 11)),
    *((COMPLETIONS, "temperature", {"temperature": 1e39, **how}) for how in ({}, {"min_tokens": 1})),
    (COMPLETIONS, "temperature", {"temperature": 3.5e38, "allowed_token_ids": [5, 6]}),
    (COMPLETIONS, "temperature", {"temperature": 1e39, "guided_choice": ["a", "b"]}),
    (CHAT, "temperature", {"temperature": 1e39, "response_format": {"type": "json_object"}}),
    (MESSAGES, "temperature", {"temperature": 1e39, **CALL}),
    (RESPONSES, "temperature", {"temperature": 1e39, **FORMAT}),
    (COMPLETIONS, "top_k", {"top_k": 10**30}),
    (MESSAGES, "top_k", {"top_k": 10**30}),
    (COMPLETIONS, "n", {"n": 10**30}),
    (COMPLETIONS, "allowed_token_ids", {"allowed_token_ids": [1] * 300_001}),
]
EVERYTHING = list(range(VOCAB))
SERVED: list[tuple[str, dict[str, Any]]] = [
    (COMPLETIONS, {"min_tokens": 1, "stop_token_ids": [128009]}),
    (COMPLETIONS, {"min_tokens": 1, "stop_token_ids": [VOCAB, 2**31 - 1, 5]}),
    (COMPLETIONS, {**BEAMS, "min_tokens": 1, "stop_token_ids": [128009]}),
    (COMPLETIONS, {"logit_bias": {"5": 100, "6": -100}, "temperature": 1e-5, "repetition_penalty": 0.01}),
    *((COMPLETIONS, {**BEAMS, "length_penalty": p}) for p in (10, -10, 0)),
    (COMPLETIONS, {"temperature": 100, "top_k": 2**31 - 1, "top_p": 1e-300, "min_tokens": 1}),
    (COMPLETIONS, {"allowed_token_ids": EVERYTHING * 30, "logit_bias": {str(i): 1 for i in EVERYTHING}}),
]
CONTRADICTING: list[dict[str, Any]] = [
    {"min_tokens": 1, "stop_token_ids": EVERYTHING},
    {**BEAMS, "min_tokens": 1, "max_tokens": 4, "stop_token_ids": EVERYTHING},
]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(EngineConfig(str(demo_model_dir()), num_blocks=200, linear="torch"))


def asked(engine: Engine, scenario: Any) -> Any:
    """scenario(app) on a server around `engine`, which serves a plain request afterwards and then holds nothing."""

    async def main() -> Any:
        async with running_app(engine) as app:  # type: ignore[arg-type]
            result = await scenario(app)
            assert (await app.client.get("/health")).json()["status"] == "ready"
            assert (await app.complete(max_tokens=2)).status_code == 200
        stats = engine.kv.stats()
        assert stats.free + stats.cached == stats.num_blocks
        return result

    return asyncio.run(main())


def test_a_number_past_its_bound_is_refused_before_it_is_scheduled(engine: Engine) -> None:
    async def scenario(app: App) -> None:
        for route, field, fields in REFUSED:
            answer = await app.client.post(route, content=json.dumps(BODIES[route] | fields), headers=JSON)
            assert answer.status_code == 400, (route, fields, answer.text[:300])
            error = answer.json()["error"]
            assert field in error["message"][: len(field)], (route, fields, error)
        assert app.service.engine.stats.num_generation_tokens == before

    before = engine.stats().num_generation_tokens
    asked(engine, scenario)


def test_extremes_within_the_bounds_and_ids_of_other_models_are_served(engine: Engine) -> None:
    async def scenario(app: App) -> None:
        for route, fields in SERVED:
            answer = await app.client.post(route, json=BODIES[route] | fields)
            assert answer.status_code == 200, (fields, answer.text[:300])

    asked(engine, scenario)


@pytest.mark.parametrize("stream", [False, True])
def test_rules_that_exclude_each_other_end_their_own_request_alone(engine: Engine, stream: bool) -> None:
    async def scenario(app: App) -> None:
        beside = asyncio.ensure_future(app.complete(max_tokens=60, temperature=0))
        for fields in CONTRADICTING:
            answer = await app.complete(**{"max_tokens": 4, **fields}, stream=stream)
            assert "leave no token" in answer.text, (fields, answer.text[:300])
            assert answer.status_code == (200 if stream else 400)
        assert (await beside).json()["usage"]["completion_tokens"] == 60

    asked(engine, scenario)


def test_python_refuses_the_same_with_the_same_words(engine: Engine) -> None:
    llm = LLM.from_engine(engine)
    for fields in ({"logit_bias": {5: 1e39}}, {"temperature": 1e39}, {"length_penalty": 400.0}):
        with pytest.raises(RequestError, match=f"{next(iter(fields))}: .* must lie between"):
            SamplingParams(**fields)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="leave no token"):
        llm.generate("Hi", SamplingParams(min_tokens=1, stop_token_ids=EVERYTHING), use_tqdm=False)
    [output] = llm.generate("Hi", SamplingParams(min_tokens=2, stop_token_ids=[128009]), use_tqdm=False)
    assert len(output.outputs[0].token_ids) >= 2
    assert not engine.has_unfinished_requests()


@pytest.fixture(scope="module", params=["generation_config", "tokenizer"])
def ends_past_the_vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, naming an end token that it does not have."""
    directory = tmp_path_factory.mktemp("ends") / "model"
    shutil.copytree(demo_model_dir(), directory)
    if request.param == "tokenizer":
        path = directory / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "<|nobody|>"}))
    else:
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 9000]}))
    return directory


def test_end_tokens_past_the_vocabulary_are_ignored(
    ends_past_the_vocabulary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    llm = LLM(ends_past_the_vocabulary, num_blocks=50, linear="torch")
    assert "lie past its vocabulary of 8192 and are ignored" in caplog.text
    params = SamplingParams(min_tokens=1, max_tokens=3, ignore_eos=False, temperature=0)
    [output] = llm.generate("Hi", params, use_tqdm=False)
    assert output.outputs[0].token_ids
