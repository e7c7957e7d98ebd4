"""A long prefix is compacted over HTTP, requests go on meanwhile, many use it, and their reports say so."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from typer.testing import CliRunner

from kvtrove.cli.main import app
from tests.server.live import running_server

ADMIN, USER = "an-administrators-key-1", "an-ordinary-users-key-1"
PREFIX = [3 + i * 7919 % 4000 for i in range(512)]


def test_a_prefix_is_compacted_once_and_read_by_many(tmp_path: Path) -> None:
    flags = ("--cache", "kvzip=0.25", "--num-blocks", "200", "--max-model-len", "1024", "--block-size", "16")
    keys = {"KVTROVE_API_KEY": USER, "KVTROVE_ADMIN_KEY": ADMIN}
    with (
        running_server(tmp_path, *flags, **keys) as server,
        server.client(ADMIN) as client,
        server.client(USER) as user,
    ):

        def complete(last: int, **more: object) -> dict:
            body = {"prompt": [*PREFIX, last], "max_tokens": 4, "temperature": 0, "cache_report": True, **more}
            return user.post("/v1/completions", json=body).raise_for_status().json()

        def pins(path: str) -> dict:
            body = {"prompt": PREFIX, "tenant": "default"}
            return client.post(f"/v1/cache/{path}", json=body).raise_for_status().json()

        complete(5)
        assert pins("pins")["blocks"] == 32
        with ThreadPoolExecutor(4) as pool:
            under_way = pool.submit(pins, "compact")
            [*_] = pool.map(complete, range(6, 9))
            done = under_way.result()
        assert (done["tokens"], done["blocks"], done["blocks_before"]) == (512, 9, 32)
        assert done["computed_tokens"] > 500
        assert client.get("/v1/cache/pins").json() == [{k: done[k] for k in ("id", "tokens", "blocks")}]
        assert server.blocks(ADMIN)["used"] == 9, "a quarter, and a block that says who has which"
        with ThreadPoolExecutor(4) as pool:
            reports = [answer["kvtrove"]["cache_report"] for answer in pool.map(complete, range(10, 14))]
        assert {(report["reused_tokens"], report["dropped_tokens"]) for report in reports} == {(512, 512 - 9 * 16)}
        report = complete(14, exact_prefix=True)["kvtrove"]["cache_report"]
        assert report.get("dropped_tokens", 0) == 0
        asked = {"prompt": [*PREFIX, 15], "exact_prefix": True}
        assert user.post("/v1/cache/explain", json=asked).json()["reused_tokens"] == 512, "computed a moment ago"
        wrong = user.post("/v1/completions", json={"prompt": [5], "exact_prefix": "yes"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "exact_prefix")
        said = CliRunner().invoke(
            app, ["cache", "compact", "too short", "--url", server.url, "--api-key", ADMIN, "--json"]
        )
        assert said.exit_code != 0
        assert json.loads(client.post("/v1/cache/compact", json={"prompt": [5]}).text)["error"]["param"] == "prompt"
