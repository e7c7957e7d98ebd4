"""`model: base:adapter` and `model: adapter` over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from kvtrove.config import EngineConfig
from kvtrove.engine import Engine
from kvtrove.server.auth import Keyring, Tenant
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


def test_adapters_come_and_go_while_the_server_runs(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Requests that have an adapter keep it to their end, also when another one has taken its name meanwhile."""
    directory = checkpoints.get("llama3")
    for seed, folder in enumerate((tmp_path / "one", tmp_path / "two")):
        write_adapter(folder, hugging_face(directory), ("q_proj", "down_proj"), seed=seed)
    config = EngineConfig(str(directory), num_blocks=64, block_size=4, max_num_seqs=4)
    asked = {"prompt": [9, 8, 7, 6, 5, 4, 3, 9, 8], "max_tokens": 24, "temperature": 0, "ignore_eos": True}

    async def talk() -> None:
        engine = Engine(config)
        keyring = Keyring([("secret", Tenant("operator", admin=True)), ("other", Tenant("user"))])
        async with running_app(engine, keyring=keyring) as app:  # type: ignore[arg-type]
            app.client.headers["authorization"] = "Bearer secret"

            async def post(path: str, **body: Any) -> Any:
                return await app.client.post(path, json=body)

            async def load(folder: str, **more: Any) -> Any:
                return await post("/v1/load_lora_adapter", lora_name="sql", lora_path=str(tmp_path / folder), **more)

            async def text() -> str:
                answer = await post("/v1/completions", model="demo:sql", **asked)
                return str(answer.json()["choices"][0]["text"])

            denied = await app.client.post(
                "/v1/load_lora_adapter",
                json={"lora_name": "a", "lora_path": "b"},
                headers={"authorization": "Bearer other"},
            )
            assert denied.status_code == 403
            loaded = await load("one")
            assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
            names = [card["id"] for card in (await app.client.get("/v1/models")).json()["data"]]
            assert names == ["demo", "sql"]
            of_one = await text()
            again = await load("two")
            assert (again.status_code, again.json()["error"]["code"]) == (400, "adapter_loaded")
            running = asyncio.ensure_future(text())
            while not engine.has_unfinished_requests():
                await asyncio.sleep(0)
            assert (await load("two", load_inplace=True)).status_code == 200
            assert await running == of_one != await text()
            assert (await post("/v1/unload_lora_adapter", lora_name="sql")).status_code == 200
            assert not engine.runner.adapters.loaded
            gone = await post("/v1/unload_lora_adapter", lora_name="sql")
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "adapter_not_found")
            assert (await post("/v1/completions", model="sql", **asked)).status_code == 404
            for name, folder in (("demo", "one"), ("a:b", "one"), ("sql", "nowhere")):
                body = {"lora_name": name, "lora_path": str(tmp_path / folder)}
                wrong = await post("/v1/load_lora_adapter", **body)
                assert wrong.status_code == 400, wrong.text

    asyncio.run(talk())
