"""/v1/embeddings with OpenAI's client, /v1/rerank and /score, on a real server."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types import CreateEmbeddingResponse

from tests.server.conftest import ALICE
from tests.server.live import CONTEXT, SPEC, LiveServer
from tests.server.strict import check

TEXT = "The block table says where the blocks are. " * 8
DOCUMENTS = ["Blocks are in the table.", {"text": "Rain all day.", "id": 7}, "Where the blocks are."]


@pytest.fixture(scope="module")
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=ALICE, max_retries=0, timeout=60)


def test_openai_asks_for_base64_and_gets_the_numbers(client: openai.OpenAI) -> None:
    decoded = client.embeddings.create(model="demo", input=[TEXT, "b"])
    plain = client.embeddings.create(model="demo", input=[TEXT, "b"], encoding_format="float")
    assert [item.index for item in plain.data] == [0, 1]
    for one, other in zip(decoded.data, plain.data, strict=True):
        assert len(one.embedding) == SPEC.hidden_size
        np.testing.assert_allclose(np.float32(one.embedding), np.float32(other.embedding), rtol=0)
    assert plain.usage.prompt_tokens == plain.usage.total_tokens
    details: Any = plain.usage.model_extra
    assert details["prompt_tokens_details"]["cached_tokens"] > 0, "the first request's blocks serve the second one"


def test_token_ids_dimensions_and_poolings(alice: httpx.Client) -> None:
    def vector(**body: Any) -> np.ndarray:
        answer = alice.post("/v1/embeddings", json=body).raise_for_status().json()
        check(
            CreateEmbeddingResponse,
            {**answer, "usage": {k: answer["usage"][k] for k in ("prompt_tokens", "total_tokens")}},
        )
        [item] = answer["data"]
        return np.array(item["embedding"])

    tokens = alice.post("/tokenize", json={"prompt": "blocks"}).json()["tokens"]
    whole = vector(input="blocks")
    np.testing.assert_array_equal(vector(input=tokens), whole)
    np.testing.assert_array_equal(vector(input=[tokens]), whole)
    np.testing.assert_array_equal(vector(input=[7, *tokens], truncate_prompt_tokens=len(tokens)), whole)
    cut = vector(input="blocks", dimensions=3)
    np.testing.assert_allclose(cut, whole[:3] / np.linalg.norm(whole[:3]), rtol=1e-5)
    assert np.linalg.norm(vector(input="blocks", normalize=False)) > 1.5
    assert not np.allclose(vector(input="two blocks", pooling="mean"), vector(input="two blocks"))
    assert vector(input=[5] * CONTEXT).shape == whole.shape, "there is no answer to leave room for"


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
def test_rerank_sorts_by_the_scores_of_score(alice: httpx.Client, path: str) -> None:
    asked = {"query": "Where are the blocks?", "documents": DOCUMENTS}
    ranked = alice.post(path, json=asked).raise_for_status().json()["results"]
    texts = [d if isinstance(d, str) else d["text"] for d in DOCUMENTS]
    scored = alice.post("/score", json={"text_1": asked["query"], "text_2": texts}).raise_for_status().json()["data"]
    assert [one["relevance_score"] for one in ranked] == sorted((one["score"] for one in scored), reverse=True)
    assert {one["index"]: one["relevance_score"] for one in ranked} == {one["index"]: one["score"] for one in scored}
    assert {one["index"]: one["document"]["text"] for one in ranked} == dict(enumerate(texts))
    assert next(one["document"] for one in ranked if one["index"] == 1)["id"] == 7
    [best] = alice.post(path, json={**asked, "top_n": 1, "return_documents": False}).json()["results"]
    assert best == {name: ranked[0][name] for name in ("index", "relevance_score")}


def test_pairs_under_all_their_names(alice: httpx.Client) -> None:
    one = alice.post("/v1/score", json={"queries": ["a", "b"], "documents": ["b", "b"]}).raise_for_status().json()
    assert one["data"][1]["score"] == pytest.approx(1.0, abs=1e-6)
    assert one["data"][0]["score"] < 1
    assert one["usage"]["total_tokens"] == 2, "a text that occurs three times is computed once"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/embeddings", {"input": ["a", ""]}, "input"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "input"),
        ("/v1/embeddings", {"input": "a " * 2 * CONTEXT}, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 100_000}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "pooling": "max"}, "pooling"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ("/v1/embeddings", {"input": [99_999_999]}, "prompt"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [{"title": "b"}]}, "documents"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ("/score", {"text_1": "a"}, "text_2"),
        ("/score", {"text_1": "a", "text_2": []}, "text_2"),
    ],
)
def test_bad_input_names_its_field(alice: httpx.Client, path: str, body: dict[str, Any], param: str) -> None:
    answer = alice.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
