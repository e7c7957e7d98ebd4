"""What the routes work with: the engine, the tokenizer, the settings, and a thread pool for what takes a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from kvtrove.engine import Engine
from kvtrove.prompts import Prompt
from kvtrove.request import RequestError, SamplingParams
from kvtrove.server.admission import Admission
from kvtrove.server.chat.answer import AnswerSyntax
from kvtrove.server.chat.call_grammar import Spell, spelling
from kvtrove.server.chat.detect import detect_syntax
from kvtrove.server.chat.recent_answers import RecentAnswers
from kvtrove.server.chat.thoughts import thoughts_named
from kvtrove.server.chat.tool_forms import format_named
from kvtrove.server.context import refuse_hopeless, refuse_unless_it_fits
from kvtrove.server.engine_thread import EngineThread
from kvtrove.server.errors import ApiError, refused
from kvtrove.server.event_feed import EventFeed
from kvtrove.server.guidance import Grammar, Grammars, TokenGuide
from kvtrove.server.observer import Observer, Observers
from kvtrove.server.quota import Quotas
from kvtrove.server.response_cache import ResponseCache, store_of
from kvtrove.server.settings import ServerSettings
from kvtrove.server.text_pool import TextPool
from kvtrove.text.capabilities import Capabilities, probe
from kvtrove.text.generation_config import sampling_defaults
from kvtrove.vectors import Vectors

T = TypeVar("T")


def _identity(engine: Engine, adapter: str) -> bytes:
    """Of a model with an adapter, or with none: its weights, and how they are cached."""
    return engine.kv.chain_root(engine.scope("", adapter))


class Service:
    """One engine behind one server. Made before the event loop runs; `start` and `stop` are called on it."""

    def __init__(self, engine: Engine, settings: ServerSettings, observers: Iterable[Observer] = ()) -> None:
        self.settings, self.limits = settings, settings.limits
        self.observers = Observers(observers)
        self.config, self.spec, self.tokenizer = engine.config, engine.spec, engine.tokenizer
        self.sampling_defaults = sampling_defaults(engine.config.model)
        self.longest_prompt, self.is_endless = engine.longest_prompt, engine.is_endless
        self.max_model_len = engine.max_model_len
        self._identities = {name: _identity(engine, name) for name in ("", *engine.adapters)}
        self.engine = EngineThread(engine, self.observers.on_step, settings.limits.step_timeout)
        self.admission = Admission(settings.limits, lambda: self.engine.num_waiting, self._num_seats)
        self.kv_events = EventFeed(self.engine)
        self.quotas = Quotas()
        self.response_cache = ResponseCache(
            store_of(settings.response_cache, settings.response_cache_ttl),
            lambda model: self._identities[self.adapter_of(model)],
            self.sampling_defaults,
            self.observers.on_response_cache,
        )
        self.created = int(time.time())
        eos = dict.fromkeys((*self.spec.eos_token_ids, *self.tokenizer.eos_token_ids))
        self._grammars = Grammars(self.tokenizer.backend, self.spec.vocab_size, tuple(eos))
        self.recent_answers = RecentAnswers(self.tokenizer)
        self.warned: set[str] = set()  # what the log has been told once
        self._pool = TextPool(settings.limits.text_timeout)

    def start(self) -> None:
        _ = self.answer_syntax, self.spell, self.mark_token_ids, self.vectors  # now, so that no request waits for it
        self._pool.start()
        self.engine.start()

    async def stop(self) -> None:
        await self.engine.stop()
        self._grammars.close()
        self._pool.stop()

    def _num_seats(self) -> int:
        """Sequences that the engine would begin at once: none while others wait, whatever they wait for."""
        stats = self.engine.stats
        return 0 if stats.num_waiting else max(0, self.config.max_num_seqs - stats.num_running)

    async def in_pool(self, function: Callable[..., T], *args: object) -> T:
        """Run `function` off the event loop, in the lane that the size of the request's body says."""
        return await self._pool.run(function, *args)

    @property
    def model_name(self) -> str:
        return self.settings.served_model_names[0]

    def check_model(self, name: str | None) -> None:
        """ApiError 404 when a request names another model than the one that is here, or an adapter that is not."""
        if name is not None and name not in self.settings.served_model_names and not self.adapter_of(name):
            here = ", ".join((*self.settings.served_model_names, *self.adapters))
            raise ApiError(
                404, f"the model {name!r:.100} is not here; there is {here}", param="model", code="model_not_found"
            )

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(name for name in self._identities if name)

    async def load_adapter(self, name: str, path: Path) -> None:
        """ModelError when it cannot be served."""

        def load(engine: Engine) -> bytes:
            engine.load_adapter(name, path)
            return _identity(engine, name)

        self._identities[name] = await self.engine.call(load)

    async def unload_adapter(self, name: str) -> None:
        """Of a name that is loaded. Requests that have it come to their end."""
        if self._identities.pop(name, None) is not None:
            await self.engine.call(lambda engine: engine.unload_adapter(name))

    def adapter_of(self, name: str | None) -> str:
        """The adapter that a request's `model` names, as MODEL:ADAPTER or by its own name; empty for none."""
        model, colon, adapter = (name or "").rpartition(":")
        if colon and model not in self.settings.served_model_names:
            return ""
        return adapter if adapter in self.adapters else ""

    @cached_property
    def capabilities(self) -> Capabilities:
        """What the model's chat template makes of conversations."""
        template = self.tokenizer.chat_template
        return Capabilities() if template is None else probe(template)

    @cached_property
    def answer_syntax(self) -> AnswerSyntax:
        """How the model writes tool calls and thoughts."""
        found = detect_syntax(self.tokenizer.chat_template, self.capabilities)
        tools, thoughts = format_named(self.settings.tool_format), thoughts_named(self.settings.reasoning_parser)
        return AnswerSyntax(
            tools or found.tools, thoughts or found.thoughts, found.id_length, found.thinks or thoughts is not None
        )

    @cached_property
    def spell(self) -> Spell:
        """Texts in grammars for this tokenizer."""
        return spelling({token.content: id for id, token in self.tokenizer.backend.get_added_tokens_decoder().items()})

    @cached_property
    def mark_token_ids(self) -> tuple[int, ...]:
        """Special tokens by which calls and thoughts are told: their text must reach the parsers."""
        marks = [mark for mark in self.answer_syntax.marks if mark]
        tokens = self.tokenizer.backend.get_added_tokens_decoder().items()
        return tuple(id for id, t in tokens if t.special and any(t.content in mark for mark in marks))

    @cached_property
    def _longest_token(self) -> int:
        """Characters of the longest token: no text has fewer tokens than its length over this."""
        return max(map(len, self.tokenizer.backend.get_vocab(with_added_tokens=True)))

    def encode(self, text: str, param: str, *, add_special_tokens: bool = True) -> Prompt:
        """Tokenise a prompt: call it off the event loop. ApiError at once when it is too long by far."""
        self.refuse_hopeless(text, param)
        return Prompt(self.tokenizer.encode(text, add_special_tokens=add_special_tokens), text)

    def refuse_hopeless(self, text: str, param: str) -> None:
        """ApiError when a text is too long by far, whatever its tokens are."""
        refuse_hopeless(len(text), self._longest_token, self.longest_prompt, param)

    def refuse_too_many(self, num: int, param: str) -> None:
        """ApiError when one request holds more prompts than the server takes."""
        most = self.limits.max_prompts if param == "prompt" else self.limits.max_inputs
        if num > most:
            raise refused(f"{param}: {num} are more than the {most} allowed", param)

    @cached_property
    def vectors(self) -> Vectors:
        """How the model makes vectors and judges documents."""
        return Vectors(self.config, self.tokenizer)

    async def guide(self, grammar: Grammar | None, params: SamplingParams) -> TokenGuide | None:
        """Compile a grammar off the event loop. ApiError when it is too large, RequestError when it is wrong, or when
        the request would not end where its text is complete.
        """
        if grammar is None:
            return None
        if params.ignore_eos:
            text = f"ignore_eos: a text that {grammar.param} describes ends where it is complete"
            raise RequestError(text, "ignore_eos")
        guide = await asyncio.get_running_loop().run_in_executor(self._grammars.pool, self._compile, grammar)
        if params.allowed_token_ids is not None and not guide.meets(params.allowed_token_ids):
            text = f"allowed_token_ids: no text that {grammar.param} describes begins with one of them"
            raise RequestError(text, "allowed_token_ids")
        return guide

    def _compile(self, grammar: Grammar) -> TokenGuide:
        if (size := grammar.size) > self.limits.max_schema_bytes:
            text = f"{grammar.param}: {size} bytes are more than the {self.limits.max_schema_bytes} allowed"
            raise refused(text, grammar.param, "schema_too_large")
        return self._grammars.compile(grammar)

    def refuse_unless_it_fits(
        self, num_tokens: int, max_tokens: int | None, param: str, limit_param: str = "max_tokens"
    ) -> None:
        """ApiError when a prompt and its answer do not fit into the context: see `context`."""
        limit = self.limits.max_prompt_tokens
        if self.is_endless:
            max_tokens = min(max_tokens or 1, 1)
        refuse_unless_it_fits(num_tokens, max_tokens, self.longest_prompt, limit, param, limit_param)
