"""What the routes work with: the engine, the tokenizer, the settings, and a thread pool for what takes a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

from kvtrove.engine import Engine
from kvtrove.prompts import Prompt
from kvtrove.request import RequestError, SamplingParams
from kvtrove.server.admission import Admission
from kvtrove.server.chat.tool_format import Format, detect_format
from kvtrove.server.context import refuse_hopeless, refuse_unless_it_fits
from kvtrove.server.engine_thread import EngineThread
from kvtrove.server.errors import ApiError, refused
from kvtrove.server.guidance import Grammar, Grammars, TokenGuide
from kvtrove.server.observer import Observer, Observers
from kvtrove.server.settings import ServerSettings
from kvtrove.text.generation_config import sampling_defaults

T = TypeVar("T")
POOL_THREADS = 4  # tokenising lets go of the interpreter, so a few threads keep all cores busy


class Service:
    """One engine behind one server. Made before the event loop runs; `start` and `stop` are called on it."""

    def __init__(self, engine: Engine, settings: ServerSettings, observers: Iterable[Observer] = ()) -> None:
        self.settings, self.limits = settings, settings.limits
        self.observers = Observers(observers)
        self.config, self.spec, self.tokenizer = engine.config, engine.spec, engine.tokenizer
        self.sampling_defaults = sampling_defaults(engine.config.model)
        self.max_model_len = engine.max_model_len
        self.engine = EngineThread(engine, self.observers.on_step, settings.limits.step_timeout)
        self.admission = Admission(settings.limits, lambda: self.engine.num_waiting, self._num_seats)
        self.created = int(time.time())
        eos = dict.fromkeys((*self.spec.eos_token_ids, *self.tokenizer.eos_token_ids))
        self._grammars = Grammars(self.tokenizer.backend, self.spec.vocab_size, tuple(eos))
        self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="kvtrove-text")

    def start(self) -> None:
        self.engine.start()

    async def stop(self) -> None:
        await self.engine.stop()
        self._grammars.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _num_seats(self) -> int:
        """Sequences that the engine would begin at once: none while others wait, whatever they wait for."""
        stats = self.engine.stats
        return 0 if stats.num_waiting else max(0, self.config.max_num_seqs - stats.num_running)

    async def in_pool(self, function: Callable[..., T], *args: object) -> T:
        """Run `function` off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    @property
    def model_name(self) -> str:
        return self.settings.served_model_names[0]

    def check_model(self, name: str | None) -> None:
        """ApiError 404 when a request names another model than the one that is here."""
        if name is not None and name not in self.settings.served_model_names:
            here = ", ".join(self.settings.served_model_names)
            raise ApiError(
                404, f"the model {name!r:.100} is not here; there is {here}", param="model", code="model_not_found"
            )

    @cached_property
    def tool_format(self) -> Format:
        """How the model writes tool calls."""
        if self.settings.tool_format != "auto":
            return self.settings.tool_format
        template = self.tokenizer.chat_template
        return detect_format("" if template is None else "\n".join(template.sources.values()))

    @cached_property
    def _longest_token(self) -> int:
        """Characters of the longest token: no text has fewer tokens than its length over this."""
        return max(map(len, self.tokenizer.backend.get_vocab(with_added_tokens=True)))

    def encode(self, text: str, param: str, *, add_special_tokens: bool = True) -> Prompt:
        """Tokenise a prompt: call it off the event loop. ApiError at once when it is too long by far."""
        refuse_hopeless(len(text), self._longest_token, self.max_model_len, param)
        return Prompt(self.tokenizer.encode(text, add_special_tokens=add_special_tokens), text)

    async def guide(self, grammar: Grammar | None, params: SamplingParams) -> TokenGuide | None:
        """Compile a grammar off the event loop. ApiError when it is too large, RequestError when it is wrong, or when
        the request would not end where its text is complete.
        """
        if grammar is None:
            return None
        if params.ignore_eos:
            text = f"ignore_eos: a text that {grammar.param} describes ends where it is complete"
            raise RequestError(text, "ignore_eos")
        if grammar.size > self.limits.max_schema_bytes:
            text = f"{grammar.param}: {grammar.size} bytes are more than the {self.limits.max_schema_bytes} allowed"
            raise refused(text, grammar.param, "schema_too_large")
        guide = await asyncio.get_running_loop().run_in_executor(self._grammars.pool, self._grammars.compile, grammar)
        if params.allowed_token_ids is not None and not guide.meets(params.allowed_token_ids):
            text = f"allowed_token_ids: no text that {grammar.param} describes begins with one of them"
            raise RequestError(text, "allowed_token_ids")
        return guide

    def refuse_unless_it_fits(
        self, num_tokens: int, max_tokens: int | None, param: str, limit_param: str = "max_tokens"
    ) -> None:
        """ApiError when a prompt and its answer do not fit into the context: see `context`."""
        limit = self.limits.max_prompt_tokens
        refuse_unless_it_fits(num_tokens, max_tokens, self.max_model_len, limit, param, limit_param)
