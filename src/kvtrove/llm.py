"""LLM: the offline face. Prompts in, results out in the same order; names and defaults are vLLM's."""

from __future__ import annotations

import itertools
import logging
import signal
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypedDict, Unpack

from kvtrove.checkpoints import Restored
from kvtrove.config import CACHE_ALIASES, EngineConfig
from kvtrove.engine import Engine
from kvtrove.kv.recipe import recipe
from kvtrove.names import find_model
from kvtrove.progress import BatchBar, loading
from kvtrove.prompts import Prompt, PromptLike, read_prompts
from kvtrove.request import PoolingParams, RequestError, RequestOutput, SamplingParams
from kvtrove.text.generation_config import sampling_defaults
from kvtrove.text.tokenizer import Tokenizer
from kvtrove.vectors import (
    EmbeddingOutput,
    EmbeddingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
    Vectors,
    pairs_of,
    pooled_of,
)

logger = logging.getLogger("kvtrove")

Message = Mapping[str, Any]


class TokensPrompt(TypedDict):
    """A rendered conversation: its text and its tokens. Goes into `generate` and `stream` as it is."""

    prompt: str
    prompt_token_ids: list[int]


@dataclass(frozen=True)
class LoRARequest:
    """A low-rank adapter as PEFT saves it: what it is called, and its folder. lora_int_id: vLLM's; not needed here."""

    lora_name: str
    lora_int_id: int = 0
    lora_path: str = ""


class TemplateOptions(TypedDict, total=False):
    """How a conversation is rendered: the keyword arguments of `LLM.chat_prompt`."""

    add_generation_prompt: bool
    continue_final_message: bool
    tools: Sequence[Mapping[str, Any]] | None
    chat_template_kwargs: Mapping[str, Any] | None


class LLM:
    """A model and its cache, called from Python.

    model: what `find_model` finds: a path, `demo`, a short name, or ORG/NAME in the Hugging Face cache.
    settings: the fields of EngineConfig, or vLLM's names for them; names without a meaning here are logged.
    Raises ConfigError (a setting) or ModelError (the checkpoint), both ValueError.

    One thread at a time may call an LLM; streams may be open while `generate` runs.
    """

    def __init__(self, model: str | Path, *, use_tqdm_on_load: bool = True, **settings: Any) -> None:
        config, ignored = EngineConfig.from_kwargs(str(model), **settings)
        config = replace(
            config,
            model=str(find_model(config.model)),
            tokenizer=None if config.tokenizer is None else str(find_model(config.tokenizer)),
        )
        if said := [f"{name}={settings[name]}" for name in CACHE_ALIASES if settings.get(name) not in (None, "auto")]:
            logger.warning("%s became --cache %s", ", ".join(said), recipe(config.cache).name)
        if ignored:
            logger.warning("settings that have no meaning here were ignored: %s", ", ".join(sorted(ignored)))
        with loading(use_tqdm_on_load) as report:
            self._use(Engine(config, progress=report))

    @classmethod
    def from_engine(cls, engine: Engine) -> LLM:
        """The same face on an engine that runs already."""
        llm = cls.__new__(cls)
        llm._use(engine)
        return llm

    def _use(self, engine: Engine) -> None:
        self.llm_engine = engine
        self._ids = itertools.count()
        self._inboxes: dict[str, list[RequestOutput]] = {}  # request id -> what its caller has not seen yet

    # ---- asking ----

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | str | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt; one result per prompt, in the order of the prompts.

        prompts: see `kvtrove.prompts`. sampling_params: one for all, or one per prompt; None: the model's own.
        lora_request: the adapter for all of them, by name, or with the folder it is loaded from when it comes first.
        Raises RequestError when one of them can never be served, EngineError when the engine could not compute one;
        then none of them is left in the engine.
        """
        read = read_prompts(prompts, self.get_tokenizer())
        asked = self.get_default_sampling_params() if sampling_params is None else sampling_params
        params = [replace(p, output_kind="final_only") for p in _one_each(asked, len(read))]
        return self._finish(list(zip(read, params, strict=True)), use_tqdm, self._adapter(lora_request))

    def _adapter(self, asked: LoRARequest | str | None) -> str:
        """The name of an adapter that is loaded then; empty for none."""
        if isinstance(asked, LoRARequest) and asked.lora_name not in self.llm_engine.adapters:
            self.llm_engine.load_adapter(asked.lora_name, asked.lora_path)
        return asked.lora_name if isinstance(asked, LoRARequest) else asked or ""

    def embed(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        pooling_params: PoolingParams | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[EmbeddingRequestOutput]:
        """A vector per prompt, in order. pooling_params: None is the model's way (`kvtrove.vectors`), of length 1."""
        params = pooling_params or self.vectors.params()
        outputs = self._finish([(p, params) for p in read_prompts(prompts, self.get_tokenizer())], use_tqdm)
        return [
            EmbeddingRequestOutput(
                o.request_id, EmbeddingOutput(pooled_of(o).tolist()), o.prompt_token_ids, o.num_cached_tokens
            )
            for o in outputs
        ]

    def score(
        self,
        data_1: str | Sequence[str],
        data_2: str | Sequence[str],
        *,
        instruction: str | None = None,
        use_tqdm: bool = True,
    ) -> list[ScoringRequestOutput]:
        """How well documents (data_2) answer a query: one query for all of them, or one for each.

        instruction: the task, in a sentence. See `kvtrove.vectors` for what the numbers are.
        """
        pairing = self.vectors.pairing(pairs_of(data_1, data_2), instruction)
        outputs = self._finish([(prompt, pairing.params) for prompt in pairing.prompts], use_tqdm)
        results = []
        for score, members in zip(pairing.scores(outputs), pairing.members, strict=True):
            read = [outputs[i] for i in members]
            ids, cached = [i for o in read for i in o.prompt_token_ids], sum(o.num_cached_tokens for o in read)
            results.append(ScoringRequestOutput(read[-1].request_id, ScoringOutput(score), ids, cached))
        return results

    def _finish(
        self, asked: Sequence[tuple[Prompt, SamplingParams | PoolingParams]], bar: bool, adapter: str = ""
    ) -> list[RequestOutput]:
        """The last output of each request, in order."""
        requests = {str(next(self._ids)): request for request in asked}
        results: dict[str, RequestOutput] = {}
        with self._requests(requests, adapter) as inbox, BatchBar(len(requests), bar) as shown:
            while len(results) < len(requests):
                self._step()
                for output in _drain(inbox):
                    if output.error is not None:
                        raise output.error
                    if output.finished:
                        results[output.request_id] = output
                        shown.finished(len(output.prompt_token_ids), sum(len(o.token_ids) for o in output.outputs))
                shown.refresh()
        return [results[request_id] for request_id in requests]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | str | None = None,
        **template: Unpack[TemplateOptions],
    ) -> list[RequestOutput]:
        """Answer one conversation, or each of a list of conversations.

        template: see `chat_prompt`. lora_request: see `generate`.
        """
        if not messages:
            raise RequestError("messages: the conversation is empty; give at least one message", "messages")
        one = isinstance(messages[0], Mapping)
        conversations: Any = [messages] if one else messages
        prompts = [self.chat_prompt(conversation, **template) for conversation in conversations]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, lora_request=lora_request)

    def chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> TokensPrompt:
        """A conversation in the model's own chat format.

        continue_final_message: the answer continues the last message instead of starting a new one.
        Raises RequestError when the messages do not fit the template or the model has none.
        """
        tokenizer = self.get_tokenizer()
        if tokenizer.chat_template is None:
            raise RequestError(
                "messages: this model has no chat template; use generate() with a plain prompt", "messages"
            )
        text = tokenizer.chat_template.render(
            messages,
            add_generation_prompt=add_generation_prompt and not continue_final_message,
            continue_final_message=continue_final_message,
            tools=tools,
            **dict(chat_template_kwargs or {}),
        )
        return {"prompt": text, "prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)}

    def stream(
        self, prompt: PromptLike, sampling_params: SamplingParams | None = None
    ) -> Generator[RequestOutput, None, None]:
        """Complete one prompt and yield its state after every step, cumulative unless `output_kind` says otherwise.

        Closing the generator aborts the request. Raises RequestError with the first item.
        """
        [read] = read_prompts([prompt], self.get_tokenizer())
        request_id = str(next(self._ids))
        with self._requests({request_id: (read, sampling_params or self.get_default_sampling_params())}) as inbox:
            finished = False
            while not finished:
                if not inbox:  # another caller's steps may have served this one meanwhile
                    self._step()
                for output in _drain(inbox):
                    if output.error is not None:
                        raise output.error
                    finished = output.finished
                    yield output

    # ---- the engine ----

    @cached_property
    def vectors(self) -> Vectors:
        """How this model makes vectors and judges documents."""
        return Vectors(self.llm_engine.config, self.get_tokenizer())

    def get_tokenizer(self) -> Tokenizer:
        return self.llm_engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the checkpoint's generation_config.json recommends, else SamplingParams()."""
        return SamplingParams(**sampling_defaults(self.llm_engine.config.model))

    def close(self) -> None:
        """Give back weights and cache (`Engine.close`). `with LLM(...) as llm:` does so at its end."""
        self.llm_engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def checkpoint(
        self,
        path: str | Path,
        *,
        prompt: PromptLike | None = None,
        request_id: str | None = None,
        archive: str | None = None,
    ) -> Path:
        """Write a sequence to a safetensors file, to be restored by any engine with the same model and cache settings.

        prompt: everything that is cached of it is kept. request_id: of an open stream, which is kept as it stands and
        can be continued. Give one of them. archive: store sealed rows smaller and lossy, as a cache recipe does
        ("int8"); requests are served from it only where they name `Restored.cache_salt`. RequestError when there is
        nothing to keep, OSError.
        """
        if (prompt is None) == (request_id is None):
            raise RequestError("checkpoint: give a prompt or a request_id, and not both", "prompt")
        if request_id is not None:
            saved = self.llm_engine.checkpoint(request_id, path, archive=archive)
        else:
            [read] = read_prompts([prompt or ""], self.get_tokenizer())
            saved = self.llm_engine.checkpoint(read.token_ids, path, read.salt, archive)
        saved.result()
        return Path(path)

    def restore(self, path: str | Path, *, cache_salt: str = "") -> Restored:
        """Bring back what `checkpoint` wrote; the same request, or one that begins with its tokens, then continues it.

        CheckpointError (a ValueError) when the file is damaged, or of another model or cache format; OSError.
        """
        return self.llm_engine.restore(path, cache_salt)

    def reset_prefix_cache(self) -> int:
        """Forget every cached block that no request holds; returns how many."""
        return self.llm_engine.reset_prefix_cache()

    @contextmanager
    def _requests(
        self, requests: Mapping[str, tuple[Prompt, SamplingParams | PoolingParams]], adapter: str = ""
    ) -> Iterator[list[RequestOutput]]:
        """Requests that are in the engine inside this block and, however it ends, not after it. Yields their inbox."""
        inbox: list[RequestOutput] = []
        try:
            for request_id, (prompt, params) in requests.items():
                with uninterrupted():
                    self._inboxes[request_id] = inbox
                    about: dict[str, Any] = {"prompt": prompt.text, "salt": prompt.salt}
                    about |= {"adapter": adapter} if adapter else {}
                    self.llm_engine.add(request_id, prompt.token_ids, params, **about)
            yield inbox
        finally:
            with uninterrupted():
                for request_id in requests:
                    if self._inboxes.pop(request_id, None) is not None:
                        self.llm_engine.abort(request_id)

    def _step(self) -> None:
        """One step of the engine for all that is open here; every output goes to the inbox of its caller."""
        if not self.llm_engine.has_unfinished_requests():
            raise RuntimeError(
                "the engine has nothing left to do but requests without a result; please report this as a bug"
            )
        with uninterrupted():
            for output in self.llm_engine.step():
                if output.request_id in self._inboxes:
                    self._inboxes[output.request_id].append(output)
        if self.llm_engine.is_waiting:
            self.llm_engine.tiering.rest()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends: a step left half-way would leave the cache's books wrong.

    A second Ctrl-C inside the block gets through at once. Only the main thread receives signals; others just go on.
    """
    handler = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if not callable(handler):
        yield
        return
    pressed: list[FrameType | None] = []

    def hold(signum: int, frame: FrameType | None) -> None:
        pressed.append(frame)
        if len(pressed) > 1:
            handler(signum, frame)

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if len(pressed) == 1:
            handler(signal.SIGINT, pressed[0])


def _drain(inbox: list[RequestOutput]) -> list[RequestOutput]:
    news = inbox.copy()
    inbox.clear()
    return news


def _one_each(params: SamplingParams | Sequence[SamplingParams], count: int) -> list[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [params] * count
    if len(params) != count:
        raise RequestError(
            f"sampling_params: {len(params)} for {count} prompts; give one for all or one per prompt", "sampling_params"
        )
    return list(params)
