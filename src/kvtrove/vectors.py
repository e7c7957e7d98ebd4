"""Vectors of texts, and how well documents answer a query: what `LLM.embed`, `LLM.score` and the server's routes share.

cosine   the vectors of query and document are compared: two prompts, and a text that occurs twice is computed once
yes-no   the model is asked whether the document answers the query: one prompt a pair, and what stands before the
         documents is computed once (the format of Qwen3-Reranker, arXiv 2506.05176, in the model's own chat template)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvtrove.config import EngineConfig
from kvtrove.prompts import Prompt
from kvtrove.request import PoolingParams, RequestError, RequestOutput
from kvtrove.text.sentence_config import SentenceConfig, read_sentence_config
from kvtrove.text.tokenizer import Tokenizer

TASK = "Given a web search query, retrieve relevant passages that answer the query"
_JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)
Vector = NDArray[np.float32]


@dataclass(frozen=True)
class EmbeddingOutput:
    """embedding: as many numbers as were asked for."""

    embedding: list[float]


@dataclass(frozen=True)
class EmbeddingRequestOutput:
    """A text's vector. `num_cached_tokens` of the prompt were not computed but reused."""

    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True


@dataclass(frozen=True)
class ScoringOutput:
    """score: a cosine, or the probability of yes."""

    score: float


@dataclass(frozen=True)
class ScoringRequestOutput:
    """A pair's score. prompt_token_ids: of all that was read for it."""

    request_id: str
    outputs: ScoringOutput
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True


@dataclass(frozen=True)
class Pairing:
    """Pairs of texts as prompts, all with the same parameters. members: prompts of each pair, by index."""

    prompts: list[Prompt]
    params: PoolingParams
    members: list[tuple[int, ...]]

    def scores(self, outputs: Sequence[RequestOutput]) -> list[float]:
        """One per pair. outputs: of the prompts, in order."""
        vectors = [pooled_of(output).astype(np.float64) for output in outputs]
        return [self._score([vectors[i] for i in indices]) for indices in self.members]

    def _score(self, vectors: list[NDArray[np.float64]]) -> float:
        if self.params.token_ids:
            yes, no = vectors[0]
            return 1 / (1 + math.exp(min(no - yes, 700.0)))
        return float(vectors[0] @ vectors[1])


class Vectors:
    """One model's way: settings first, then what the checkpoint says, else the last token and cosines."""

    def __init__(self, config: EngineConfig, tokenizer: Tokenizer) -> None:
        said = SentenceConfig() if config.load_format == "dummy" else read_sentence_config(config.model)
        self.tokenizer = tokenizer
        self.pooling = (said.pooling or "last") if config.pooling == "auto" else config.pooling
        self.judges = said.judge is not None if config.scoring == "auto" else config.scoring == "yes-no"
        self._answers = said.judge

    def params(
        self, pooling: str | None = None, normalize: bool | None = None, dimensions: int | None = None
    ) -> PoolingParams:
        """What a request asks for, and the model's way for what it leaves out."""
        return PoolingParams(pooling or self.pooling, True if normalize is None else normalize, dimensions)

    def pairing(
        self,
        pairs: Sequence[tuple[str, str]],
        instruction: str | None = None,
        *,
        params: PoolingParams | None = None,
        salt: str = "",
    ) -> Pairing:
        """pairs: (query, document). instruction: the task, in a sentence. RequestError for what cannot be asked.

        Tokenises and renders: call it off an event loop.
        """
        if not pairs:
            raise RequestError("documents: the list is empty; give at least one", "documents")
        if self.judges:
            texts = [self._question(query, document, instruction) for query, document in pairs]
            prompts = [Prompt(self.tokenizer.encode(text, add_special_tokens=False), text, salt) for text in texts]
            return Pairing(prompts, PoolingParams(token_ids=self._yes_and_no()), [(i,) for i in range(len(pairs))])
        asked = [(f"Instruct: {instruction}\nQuery:{q}" if instruction else q, document) for q, document in pairs]
        index = {text: i for i, text in enumerate(dict.fromkeys(text for pair in asked for text in pair))}
        prompts = [Prompt(self.tokenizer.encode(text), text, salt) for text in index]
        return Pairing(prompts, params or self.params(), [(index[query], index[document]) for query, document in asked])

    def _question(self, query: str, document: str, instruction: str | None) -> str:
        template = self.tokenizer.chat_template
        if template is None:
            raise RequestError("scoring: yes-no asks in a chat, and this model has no chat template; cosine needs none")
        asked = f"<Instruct>: {instruction or TASK}\n<Query>: {query}\n<Document>: {document}"
        messages = [{"role": "system", "content": _JUDGE}, {"role": "user", "content": asked}]
        return template.render(messages, add_generation_prompt=True, enable_thinking=False)

    def _yes_and_no(self) -> tuple[int, int]:
        """The first tokens of both words, which must differ."""
        if self._answers is None:
            yes, no = (self.tokenizer.encode(word, add_special_tokens=False)[:1] for word in ("yes", "no"))
            if not yes or not no or yes == no:
                raise RequestError("scoring: this tokenizer writes yes and no alike; cosine needs neither word")
            self._answers = yes[0], no[0]
        return self._answers


def pairs_of(
    queries: str | Sequence[str], documents: str | Sequence[str], names: tuple[str, str] = ("data_1", "data_2")
) -> list[tuple[str, str]]:
    """One query for every document, or one for each. names: of both, in the RequestError unless they fit."""
    first = [queries] if isinstance(queries, str) else list(queries)
    second = [documents] if isinstance(documents, str) else list(documents)
    if not first or not second:
        name = names[bool(first)]
        raise RequestError(f"{name}: the list is empty; give at least one text", name)
    if len(first) not in (1, len(second)):
        raise RequestError(
            f"{names[0]}: {len(first)} texts for {len(second)} of {names[1]}; give one for all, or one for each",
            names[0],
        )
    return list(zip(first if len(first) > 1 else first * len(second), second, strict=True))


def pooled_of(output: RequestOutput) -> Vector:
    """The vector of a request that asked for one."""
    assert output.pooled is not None, "a request with PoolingParams ends with a vector or an error"
    return output.pooled
