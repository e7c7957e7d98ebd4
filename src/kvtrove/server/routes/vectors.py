"""POST /v1/embeddings, /v1/rerank (and /rerank, /v2/rerank), /score (and /v1/score): requests that draw no tokens."""

from __future__ import annotations

import base64
from abc import abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
from fastapi import APIRouter, Request, Response

from kvtrove.prompts import Prompt
from kvtrove.request import PoolingParams, RequestOutput
from kvtrove.server.body import BodyRoute
from kvtrove.server.engine_thread import EngineRequest
from kvtrove.server.errors import ApiError
from kvtrove.server.job import Job
from kvtrove.server.protocol.vectors import (
    Document,
    EmbeddingItem,
    EmbeddingRequest,
    Embeddings,
    RankedDocument,
    Ranking,
    RerankRequest,
    ScoreRequest,
    Scores,
    VectorRequest,
    VectorUsage,
)
from kvtrove.server.respond import COMMENT, DONE, open_job, respond, sse
from kvtrove.server.routes.common import GENERATES, ServiceOf, errors, notes_of
from kvtrove.server.routes.prompt_input import read_prompts
from kvtrove.server.service import Service
from kvtrove.vectors import pairs_of, pooled_of

router = APIRouter(route_class=BodyRoute)
B = TypeVar("B", bound=VectorRequest)


@router.post("/v1/embeddings", response_model=None, responses={200: {"model": Embeddings}, **errors(*GENERATES)})
async def embeddings(body: EmbeddingRequest, request: Request, service: ServiceOf) -> Response:
    """Vectors of texts or token ids."""
    return await _answered(Embedding, body, request, service)


@router.post("/rerank", response_model=None, include_in_schema=False)
@router.post("/v1/rerank", response_model=None, responses={200: {"model": Ranking}, **errors(*GENERATES)})
@router.post("/v2/rerank", response_model=None, include_in_schema=False)
async def rerank(body: RerankRequest, request: Request, service: ServiceOf) -> Response:
    """Documents in the order in which they answer a query."""
    return await _answered(Rerank, body, request, service)


@router.post("/score", response_model=None, responses={200: {"model": Scores}, **errors(*GENERATES)})
@router.post("/v1/score", response_model=None, include_in_schema=False)
async def score(body: ScoreRequest, request: Request, service: ServiceOf) -> Response:
    """How well each text answers another."""
    return await _answered(Score, body, request, service)


async def _answered(
    endpoint: type[_VectorEndpoint[Any]], body: VectorRequest, request: Request, service: Service
) -> Response:
    service.check_model(body.model)
    job = open_job(service, request, body)
    return await respond(request, job, endpoint(job, body), False)


class _VectorEndpoint(Generic[B]):
    """One request. It is answered at once: the events of a stream are not offered."""

    keep_alive = COMMENT

    def __init__(self, job: Job, body: B) -> None:
        self.job, self.body = job, body
        self.salt = job.caller.tenant.cache_salt(body.cache_salt)

    @abstractmethod
    async def submit(self) -> None: ...

    @abstractmethod
    def results(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        """What the answer says beside its envelope."""

    async def answer(self) -> dict[str, Any]:
        outputs = await self.job.final()
        found = await self.job.service.in_pool(self.results, outputs)
        model = self.body.model or self.job.service.model_name
        return found | {"model": model, "usage": self._usage()} | notes_of(self.job)

    async def events(self) -> AsyncGenerator[str, None]:
        yield sse(await self.answer())
        yield DONE

    def error_event(self, error: ApiError) -> str:
        return sse(error.body) + DONE

    async def send(self, prompts: Sequence[Prompt], params: PoolingParams) -> None:
        """ApiError when one is too long."""
        params = replace(params, exact_prefix=self.body.exact_prefix is True)
        for prompt in prompts:
            self.job.service.refuse_unless_it_fits(len(prompt.token_ids), 0, self.body.prompt_field)
        await self.job.submit(
            [
                EngineRequest(f"{self.job.key}-{i}", p.token_ids, params, p.text, self.salt)
                for i, p in enumerate(prompts)
            ]
        )

    def _usage(self) -> VectorUsage:
        usage = self.job.usage()
        tokens, details = usage["prompt_tokens"], usage["prompt_tokens_details"]
        return {"prompt_tokens": tokens, "total_tokens": tokens, "prompt_tokens_details": details}


class Embedding(_VectorEndpoint[EmbeddingRequest]):
    async def submit(self) -> None:
        body, service = self.body, self.job.service
        params = service.vectors.params(body.pooling, body.normalize, body.dimensions)
        most = body.truncate_prompt_tokens
        most = service.max_model_len if most == -1 else most
        prompts = await read_prompts(
            body.input, service, "input", special=body.add_special_tokens is not False, keep=most
        )
        await self.send(prompts, params)

    def results(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        data = [self._item(index, output) for index, output in enumerate(outputs)]
        return {"object": "list", "data": data}

    def _item(self, index: int, output: RequestOutput) -> EmbeddingItem:
        vector = pooled_of(output)
        written: list[float] | str = vector.tolist()
        if self.body.encoding_format == "base64":
            written = base64.b64encode(vector.astype(np.dtype("<f4")).tobytes()).decode()
        return {"object": "embedding", "index": index, "embedding": written}


class _Paired(_VectorEndpoint[B]):
    """Requests about pairs of texts."""

    async def send_pairs(self, pairs: Sequence[tuple[str, str]], instruction: str | None) -> None:
        body, service = self.body, self.job.service
        service.refuse_too_many(len(pairs), body.prompt_field)
        for text in {text for pair in pairs for text in pair}:
            service.refuse_hopeless(text, body.prompt_field)
        self.pairing = await service.in_pool(
            lambda: service.vectors.pairing(pairs, instruction, params=service.vectors.params(body.pooling))
        )
        await self.send(self.pairing.prompts, self.pairing.params)


class Rerank(_Paired[RerankRequest]):
    async def submit(self) -> None:
        texts = [document.text if isinstance(document, Document) else document for document in self.body.documents]
        names = "query", "documents"
        await self.send_pairs(pairs_of(self.body.query, texts, names), self.body.instruction)

    def results(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        scores = self.pairing.scores(outputs)
        best = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
        top = self.body.top_n
        best = best[:top] if top is not None and top > 0 else best
        return {"id": f"rerank-{self.job.key}", "results": [self._ranked(index, scores[index]) for index in best]}

    def _ranked(self, index: int, relevance: float) -> RankedDocument:
        ranked: RankedDocument = {"index": index, "relevance_score": relevance}
        if self.body.return_documents is not False:
            document = self.body.documents[index]
            ranked["document"] = document.model_dump() if isinstance(document, Document) else {"text": document}
        return ranked


class Score(_Paired[ScoreRequest]):
    async def submit(self) -> None:
        pairs = pairs_of(self.body.text_1, self.body.text_2, ("text_1", "text_2"))
        await self.send_pairs(pairs, self.body.instruction)

    def results(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        scores = self.pairing.scores(outputs)
        data = [{"object": "score", "index": index, "score": one} for index, one in enumerate(scores)]
        return {"id": f"score-{self.job.key}", "object": "list", "created": self.job.created, "data": data}
