"""`model: base:adapter` and `model: adapter` over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from kvtrove.config import EngineConfig
from kvtrove.engine import Engine
from tests.adapters import write_adapter
from tests.checkpoints import Checkpoints
from tests.golden.harness import hugging_face
from tests.server.in_process import running_app


def test_the_model_of_a_request_names_an_adapter(checkpoints: Checkpoints, tmp_path: Path) -> None:
    directory = checkpoints.get("llama3")
    write_adapter(tmp_path, hugging_face(directory), ("q_proj", "down_proj"), seed=1)
    config = EngineConfig(str(directory), num_blocks=64, block_size=4, max_num_seqs=4, lora_modules=f"sql={tmp_path}")
    asked = {"prompt": [9, 8, 7, 6, 5, 4, 3, 9, 8], "max_tokens": 8, "temperature": 0, "ignore_eos": True}

    async def talk() -> None:
        async with running_app(Engine(config)) as app:  # type: ignore[arg-type]

            async def post(path: str, model: str, **body: Any) -> Any:
                return (await app.client.post(path, json={"model": model, **body})).json()

            cards = (await app.client.get("/v1/models")).json()["data"]
            assert [(card["id"], card.get("parent")) for card in cards] == [("demo", None), ("sql", "demo")]
            texts = [
                (await post("/v1/completions", m, **asked))["choices"][0]["text"] for m in ("demo", "sql", "demo:sql")
            ]
            assert texts[0] != texts[1] == texts[2]
            cached = (await post("/v1/completions", "demo:sql", **asked))["usage"]["prompt_tokens_details"]
            assert cached == {"cached_tokens": 8}
            chat = await post("/v1/chat/completions", "sql", messages=[{"role": "user", "content": "a"}], max_tokens=2)
            assert (chat["model"], len(chat["choices"])) == ("sql", 1)
            vectors = [(await post("/v1/embeddings", m, input=[5, 6]))["data"] for m in ("demo", "sql")]
            assert vectors[0] != vectors[1]
            for name in ("demo:other", "other:sql", "other"):
                refused = await app.client.post("/v1/completions", json={"model": name, **asked})
                assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
                assert "there is demo, sql" in refused.json()["error"]["message"]

    asyncio.run(talk())
