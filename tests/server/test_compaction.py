"""Caches that drop tokens, over HTTP: answers past the context, what they say of it, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

from kvtrove.config import EngineConfig
from kvtrove.demo import demo_model_dir
from kvtrove.engine import Engine
from tests.server.in_process import App, running_app


def serving(**settings: Any) -> Any:
    config = EngineConfig(str(demo_model_dir()), num_blocks=20, block_size=16, max_model_len=64, seed=0, **settings)
    return running_app(Engine(config))  # type: ignore[arg-type]


async def refusal(app: App, **body: Any) -> tuple[int, str, str]:
    answer = await app.complete(**body)
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["message"]


def test_a_shifted_context_goes_on_and_the_answer_says_so() -> None:
    async def scenario() -> None:
        async with serving(context_shift=True) as app:
            answer = (await app.complete(max_tokens=90, n_keep=-1, ignore_eos=True)).json()
            assert answer["usage"]["completion_tokens"] == 90
            assert answer["kvtrove"]["truncated"] is True
            short = (await app.complete(max_tokens=9, ignore_eos=True)).json()
            assert "truncated" not in short.get("kvtrove", {})
            no_limit = (await app.complete(prompt=[5] * 60, max_tokens=None, ignore_eos=True)).json()
            assert no_limit["usage"]["completion_tokens"] <= 16, "an answer without a limit ends where it always did"
            code, param, message = await refusal(app, prompt=[5] * 64, max_tokens=1)
            assert (code, param) == (400, "prompt"), message
            assert (await refusal(app, n_keep=-2))[:2] == (400, "n_keep")

    asyncio.run(scenario())


def test_prompts_longer_than_the_context_stream_through_a_window() -> None:
    async def scenario() -> None:
        async with serving(cache="streaming=4+44") as app:
            answer = (await app.complete(prompt=[5, 6, 7] * 50, max_tokens=30, ignore_eos=True)).json()
            assert answer["usage"] == answer["usage"] | {"prompt_tokens": 150, "completion_tokens": 30}
            assert answer["kvtrove"]["truncated"] is True
            code, param, message = await refusal(app, use_beam_search=True, n=2, temperature=0, max_tokens=4)
            assert (code, param) == (400, "beam_width"), message

    asyncio.run(scenario())


def test_who_keeps_nothing_refuses_n_keep() -> None:
    async def scenario() -> None:
        async with serving() as app:
            code, param, message = await refusal(app, n_keep=4)
            assert (code, param) == (400, "n_keep")
            assert "--context-shift" in message
            assert (await app.complete(n_keep=0, max_tokens=1)).status_code == 200, "what llama.cpp's clients send"

    asyncio.run(scenario())
