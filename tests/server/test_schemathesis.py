"""Requests that a machine makes up from /openapi.json: whatever they say, the answer is never a 500."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode

from tests.server.conftest import ADMIN
from tests.server.live import LiveServer, running_server

EXAMPLES = 8  # per operation
FLAGS = ("--num-blocks", "64", "--max-model-len", "128", "--max-n", "3", "--request-timeout", "0.25")


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Short contexts and a short patience, so that a request without max_tokens is over soon."""
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "keys.toml").write_text(f'[root]\nkey = "{ADMIN}"\nadmin = true\n')
    with running_server(folder, "--api-keys", str(folder / "keys.toml"), *FLAGS, KVTROVE_CHECK="2") as server:
        yield server
        assert server.process.poll() is None, "the process lives"
        server.wait_idle(ADMIN)


OPERATIONS = [
    "DELETE /v1/cache/checkpoints/{name}",
    "DELETE /v1/cache/pins/{pin_id}",
    "GET /health",
    "GET /health/live",
    "GET /metrics",
    "GET /tokenizer_info",
    "GET /v1/cache/checkpoints",
    "GET /v1/cache/memory",
    "GET /v1/cache/pins",
    "GET /v1/cache/reports",
    "GET /v1/cache/reports/{request_id}",
    "GET /v1/models",
    "GET /v1/models/{model_id}",
    "GET /v1/status",
    "GET /version",
    "POST /detokenize",
    "POST /score",
    "POST /tokenize",
    "POST /v1/cache/checkpoints",
    "POST /v1/cache/checkpoints/{name}/restore",
    "POST /v1/cache/clear",
    "POST /v1/cache/compact",
    "POST /v1/cache/explain",
    "POST /v1/cache/pins",
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/embeddings",
    "POST /v1/load_lora_adapter",
    "POST /v1/log_level",
    "POST /v1/messages",
    "POST /v1/messages/count_tokens",
    "POST /v1/rerank",
    "POST /v1/responses",
    "POST /v1/responses/input_tokens",
    "POST /v1/unload_lora_adapter",
]


@pytest.fixture(scope="module")
def operations(small_server: LiveServer) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {ADMIN}"}
    schema = schemathesis.openapi.from_url(f"{small_server.url}/openapi.json", headers=headers)
    found = [result.ok() for result in schema.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


def test_every_route_is_in_the_schema(operations: dict[str, Any]) -> None:
    assert set(OPERATIONS) == set(operations), "a new route is to be listed above"


CASES = [(name, GenerationMode.POSITIVE) for name in OPERATIONS]
CASES += [(n, GenerationMode.NEGATIVE) for n in OPERATIONS if n.startswith("POST") and not n.endswith("clear")]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_no_answer_is_a_server_error(
    small_server: LiveServer, operations: dict[str, Any], name: str, mode: GenerationMode
) -> None:
    """positive: bodies as the schema wants them; negative: bodies that break it."""
    operation = operations[name]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES if name.startswith("POST") else 2,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        answer = case.call(headers={"authorization": f"Bearer {ADMIN}"})
        assert answer.status_code < 500, (
            f"{case.as_curl_command()}\n{answer.text}\n{small_server.log.read_text()[-3000:]}"
        )
        assert answer.headers["x-request-id"]
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, answer.text

    ask()
