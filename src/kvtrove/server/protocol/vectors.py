"""POST /v1/embeddings, /v1/rerank and /score: the names of OpenAI, of Cohere and Jina, and of vLLM."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import AliasChoices, Field
from typing_extensions import TypedDict

from kvtrove.server.protocol.common import CacheFields, Integer, Part, PromptTokensDetails
from kvtrove.server.protocol.completions import Prompts


class VectorRequest(CacheFields):
    """What a request that draws nothing may say of its vectors: `kvtrove.request.PoolingParams`."""

    draws: ClassVar[bool] = False

    model: str | None = None
    user: str | None = None
    pooling: Literal["last", "mean", "cls"] | None = None


class EmbeddingRequest(VectorRequest):
    """truncate_prompt_tokens: only the last so many of each input, -1 is as many as the context holds."""

    prompt_field: ClassVar[str] = "input"

    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[Integer, Field(ge=1)] | None = None
    normalize: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[Integer, Field(ge=-1)] | None = None


class Document(Part):
    text: str


class RerankRequest(VectorRequest):
    """top_n: only the best so many. instruction: the task, in a sentence."""

    prompt_field: ClassVar[str] = "documents"

    query: str
    documents: list[str | Document]
    top_n: Integer | None = None
    return_documents: bool | None = None
    instruction: str | None = None


Texts = str | list[str]


class ScoreRequest(VectorRequest):
    """One text_1 for all of text_2, or one for each."""

    prompt_field: ClassVar[str] = "text_2"

    text_1: Annotated[Texts, Field(validation_alias=AliasChoices("text_1", "queries", "data_1"))]
    text_2: Annotated[Texts, Field(validation_alias=AliasChoices("text_2", "documents", "items", "data_2"))]
    instruction: str | None = None


class VectorUsage(TypedDict):
    """Tokens; `cached_tokens` of them were reused."""

    prompt_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class EmbeddingItem(TypedDict):
    """embedding: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(TypedDict):
    object: Literal["list"]
    data: list[EmbeddingItem]
    model: str
    usage: VectorUsage
    kvtrove: NotRequired[dict[str, Any]]


class RankedDocument(TypedDict):
    """index: of the document in the request."""

    index: int
    relevance_score: float
    document: NotRequired[dict[str, Any]]


class Ranking(TypedDict):
    """results: best first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: VectorUsage
    kvtrove: NotRequired[dict[str, Any]]


class ScoreItem(TypedDict):
    object: Literal["score"]
    index: int
    score: float


class Scores(TypedDict):
    """data: in the order of the request."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ScoreItem]
    usage: VectorUsage
    kvtrove: NotRequired[dict[str, Any]]
