"""The engine: step() = schedule -> execute -> update. Everything else here is starting up and saying what happened."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from kvtrove import prices
from kvtrove.checkpoints import Checkpoints, Restored, Written, continue_from
from kvtrove.compacting import CompactedPrefix, Compactions
from kvtrove.config import EngineConfig, Environment
from kvtrove.engine_stats import EngineStats, engine_stats
from kvtrove.intake import Intake
from kvtrove.kv import debug
from kvtrove.kv.invariants import InvariantError
from kvtrove.kv.manager import CHECK_EVERY_CALL, KVCacheManager
from kvtrove.kv.repair import forget
from kvtrove.models.config_reader import read_config, read_spec
from kvtrove.models.fingerprint import model_fingerprint
from kvtrove.output_processor import RequestText
from kvtrove.pinning import PinnedPrefix, PinnedPrefixes
from kvtrove.plan.process import return_freed_memory
from kvtrove.recovery import NoProgressError, Recovery
from kvtrove.request import EngineError, Guide, PoolingParams, RequestError, RequestOutput, SamplingParams, SoftPin
from kvtrove.scheduler.output import SchedulerOutput
from kvtrove.scheduler.pace import Pace
from kvtrove.scheduler.scheduler import Scheduler, SchedulerLimits
from kvtrove.scheduler.sequence import Request
from kvtrove.sessions import Sessions
from kvtrove.text.chat_template import given_template
from kvtrove.text.tokenizer import Tokenizer
from kvtrove.tiering import Tiering, wanted_tiers

if TYPE_CHECKING:
    from kvtrove.kv.spec import KVCacheSpec
    from kvtrove.loading import Progress
    from kvtrove.models.decoder import Model

log = logging.getLogger(__name__)
TRIM_EVERY = 1000
"""Requests after which the C library hands back what it holds of freed memory, some ten milliseconds' work: its heaps
have holes between what lives long, and would grow by half of themselves over thousands of requests.
"""


class Engine:
    """One model, one KV cache, one thread. Not thread-safe: whoever owns it calls add, abort and step in turn.

    exact: the cache that `config.cache` changes, if not that of the weights. model: another engine's weights.
    Raises ModelError or ConfigError (both ValueError) when the checkpoint or the settings cannot work.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        progress: Progress | None = None,
        exact: KVCacheSpec | None = None,
        model: Model | None = None,
    ) -> None:
        from kvtrove.loading import drafter, load_runner  # torch: only an engine that really starts needs it

        directory = Path(config.model)
        self.config = config
        self.clock = clock
        dummy = config.load_format == "dummy"
        self.spec = read_config(directory) if dummy and directory.is_file() else read_spec(directory)
        text = Path(config.tokenizer) if config.tokenizer else directory
        without = dummy and not config.tokenizer and not (text / "tokenizer.json").is_file()
        self.tokenizer = Tokenizer.without_tokens() if without else Tokenizer.load(text)
        if config.chat_template is not None:
            self.tokenizer.chat_template = given_template(config.chat_template, self.tokenizer.named_tokens)
        tiers = wanted_tiers(config)  # a mistake in one is found before a minute of loading
        loaded = load_runner(config, self.spec, self.tokenizer.token_text, progress, exact, model)
        self.runner, self.ledger, capacity = loaded.runner, loaded.ledger, loaded.capacity
        self.max_model_len = capacity.max_model_len
        self.tiering = Tiering(tiers, self.runner.cache)
        self.runner.rows.store = self.tiering.store
        self.kv = KVCacheManager(
            self.runner.cache,
            capacity.num_blocks,
            root=model_fingerprint(
                directory, self.spec, str(self.runner.model.precision), self.max_model_len, config.load_format
            ),
            num_seats=config.max_num_seats,
            mark_rules=loaded.mark_rules,
            enable_prefix_caching=config.enable_prefix_caching,
            check=config.check or 0,
            crc=self.runner.arena.crc,
            clock=clock,
            eviction=config.eviction,
            store=self.tiering.store,
        )
        if exact is None and config.cache != EngineConfig.cache:
            prices.tell(config.cache, self.kv.chain_root(b"").hex())
        limits = SchedulerLimits(
            *(config.max_num_seqs, config.max_num_batched_tokens, config.max_concurrent_prefills, config.cache_reuse)
        )
        if config.cache_reuse:
            self.kv.index.note_contents()
        self.scheduler = Scheduler(self.kv, limits, clock, drafter(config))
        self._pace = Pace(config.max_prompt_seconds, config.max_num_batched_tokens, config.block_size)
        self.recovery = Recovery(self.scheduler, self.kv, self.runner.execute, clock)
        self.guard: Callable[[], AbstractContextManager[object]] = nullcontext
        """Entered around what a step computes; a watchdog may raise inside of it."""
        can_draft = self.scheduler.drafter is not None
        self._intake = Intake(
            *(self.spec, self.tokenizer, self.max_model_len, config.seed, clock),
            can_draft=can_draft,
            compactor=self.runner.cache.compactor,
            shifts=config.context_shift,
        )
        self.longest_prompt, self.is_endless = self._intake.longest_prompt, self._intake.is_endless
        self._products = loaded.products
        for name, path in config.adapters:
            self.load_adapter(name, path)
        self._texts: dict[str, RequestText] = {}
        self._ended = 0
        self.checkpoints = Checkpoints(config, self.kv, self.runner.rows)
        self.sessions = Sessions()
        self._pinned = PinnedPrefixes(self.scheduler, self.max_model_len)
        self._compactions = Compactions(
            self.scheduler, self._intake, self.tokenizer, self._pinned, lambda: self.runner.rows.settle(self.kv)
        )
        self._cache_log = Environment.read().cache_log
        self.last_step: SchedulerOutput | None = None
        """What the last step computed, for those who measure steps."""
        self.closed = False

    def close(self) -> None:
        """Give back weights, cache and what else it holds; requests in it are lost. Once is enough, twice does no harm.

        Afterwards `add` and `step` raise EngineError, and nothing is unfinished.
        """
        if not self.closed:
            self.closed, self.last_step = True, None
            self._texts.clear()
            self.checkpoints.close()
            self.tiering.close(self.kv, self.runner.rows)
            del self.runner, self.kv, self.scheduler, self.recovery, self._pinned, self._compactions, self.checkpoints
            gc.collect()
            return_freed_memory()

    def _refuse_closed(self) -> None:
        if self.closed:
            raise EngineError("the engine is closed")

    def step(self) -> list[RequestOutput]:
        """Advance every request that can; returns those with news.

        A step that fails ends at most the requests that are at fault, with an `error` (see `recovery`). EngineDeadError
        when the engine cannot go on.
        """
        self._refuse_closed()
        self.last_step = None
        try:
            with self.guard():
                self.recovery.before()
                touched = self._advance()
        except Exception as error:
            return self._recover(error)
        self.recovery.passed()
        return self._report(touched)

    def _advance(self) -> list[Request]:
        start = self.clock()
        self.checkpoints.back_up(self.scheduler.running.values())
        self.last_step = scheduled = self.scheduler.schedule()
        if not scheduled.sequences and self.scheduler.has_unfinished and not self.scheduler.is_waiting:
            raise NoProgressError(f"{len(self.scheduler.requests)} requests are unfinished and none can go on")
        output = self.runner.execute(scheduled)
        for seq_id, result in output.results.items():
            if isinstance(result.error, EngineError):
                forget(self.kv, self.scheduler.running[seq_id].kv)
        touched = self.scheduler.update(scheduled, output)
        num_tokens, decodes = scheduled.num_tokens, scheduled.num_decodes
        if num_tokens:
            self._pace.learn(num_tokens - decodes, decodes, self.clock() - start, scheduled.num_listed)
            self.scheduler.keep_pace(self._pace)
        if not self.scheduler.has_unfinished:
            self.tend()
        if self._cache_log:
            self._log_cache(num_tokens)
        return touched

    def _recover(self, error: Exception) -> list[RequestOutput]:
        """Repair what a failed step left; returns the requests that have ended, for it or before it failed."""
        planned = () if self.last_step is None else self.last_step.sequences
        running = self.scheduler.running
        seqs = [running[s.seq_id] for s in planned if s.seq_id in running] or list(running.values())
        members = list({seq.request.id: seq.request for seq in seqs or list(self.scheduler.waiting)[:1]}.values())
        self._fault(error, members, self.scheduler.at_work)
        return self._report([text.request for text in self._texts.values() if text.request.finished])

    def _fault(self, error: Exception, members: Sequence[Request], culprit: Request | None) -> None:
        if isinstance(error, InvariantError) and self.config.check == CHECK_EVERY_CALL:
            raise error  # asked for by those who look for bugs
        self.recovery.failed(error, members, culprit)
        self._pinned.drop_lost()
        self._compactions.advance()

    def add(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams | PoolingParams,
        *,
        prompt: str | None = None,
        salt: str = "",
        guide: Guide | None = None,
        adapter: str = "",
        soft_pins: Sequence[SoftPin] = (),
        session: str = "",
    ) -> None:
        """Queue a request for an answer, or with PoolingParams for a vector. `salt` separates tenants: only requests
        with the same one share cached blocks. `guide` holds every output to a grammar. adapter: a name of `adapters`.
        soft_pins: prefixes that leave the cache last. session: name of the conversation, for `checkpoint`.

        RequestError when it can never be served; the message says what would be.
        """
        self._refuse_closed()
        if request_id in self._texts:
            raise RequestError(f"request id {request_id!r} is already in use", "request_id")
        request = self._intake.request(request_id, prompt_token_ids, params, salt, guide, soft_pins, session, adapter)
        text = RequestText(request, prompt, self.tokenizer)
        self.scheduler.add(request)
        if (drawn := self.checkpoints.resume(request)) is not None:
            continue_from(request, drawn)
        self.scheduler.admission.expect(request.sequences[0], self.scheduler.running.values())
        self._texts[request_id] = text

    @property
    def adapters(self) -> list[str]:
        """Names of those that requests may have."""
        return list(self._intake.adapters)

    def scope(self, salt: str, adapter: str = "") -> bytes:
        """What separates the cached blocks of these requests from those of others."""
        return self._intake.scope(salt, adapter)

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Have a low-rank adapter, as PEFT saves it, for later requests. ModelError when it cannot be served."""
        self._intake.adapters[name] = self.runner.adapters.load(Path(path).expanduser(), self._products)
        self._forget_adapters()

    def unload_adapter(self, name: str) -> None:
        """No later request has it; those that do come to their end. KeyError when there is none of that name."""
        del self._intake.adapters[name]
        self._forget_adapters()

    def _forget_adapters(self) -> None:
        used = {request.adapter for request in self.scheduler.requests.values()}
        self.runner.adapters.keep(used.union(self._intake.adapters.values()))

    def abort(self, request_id: str) -> bool:
        """Drop a request at any moment; all that it held is free when this returns. False when it is not known."""
        self._texts.pop(request_id, None)
        request = None if self.closed else self.scheduler.requests.get(request_id)
        if request is None:
            return False
        try:
            self.scheduler.abort(request_id)
        except Exception as error:
            self._fault(error, [], request)
        self._let_go(request)
        return True

    def has_unfinished_requests(self) -> bool:
        return not self.closed and bool(self.scheduler.requests)

    def tend(self) -> bool:
        """To be called now and then while nothing is unfinished: saves to the tiers. False: nothing is left to do."""
        return not self.closed and self.tiering.tend(self.kv, self.runner.rows)

    @property
    def is_waiting(self) -> bool:
        """Whether every unfinished request waits for something outside of the engine: sleep before the next step."""
        return not self.closed and self.scheduler.is_waiting

    def checkpoint(
        self, source: str | Sequence[int], path: str | Path, salt: str = "", archive: str | None = None
    ) -> Future[Written]:
        """Write a sequence to a file: an unfinished request, by its id, or what is cached of a session's conversation,
        by its name, or of a prompt's tokens.

        It is written beside the engine's thread, all or nothing; the result says its size. RequestError when there is
        nothing to keep. archive: see `Checkpoints.save`.
        """
        if isinstance(source, str):
            known = self.scheduler.requests.get(source) or self.sessions.find(source, salt.encode())
            if known is None:
                told = f"request_id: no unfinished request or session is called {source!r}"
                raise RequestError(told, "request_id")
            return self.checkpoints.save(known, Path(path), salt.encode(), archive)
        return self.checkpoints.save(source, Path(path), salt.encode(), archive)

    def restore(self, path: str | Path, salt: str = "", archive_salt: Callable[[str], str] | None = None) -> Restored:
        """Bring back what `checkpoint` wrote: its prefix is cached, and the same request continues where it stood.
        archive_salt: see `Checkpoints.restore`.

        CheckpointError (a ValueError) when it is damaged or of another model, format, tenant or salt; OSError.
        """
        self._refuse_closed()
        return self.checkpoints.restore(Path(path), salt.encode(), archive_salt)

    def reset_prefix_cache(self) -> int:
        """Forget every cached block that no request uses; returns how many."""
        return self.kv.reset_prefix_cache()

    def pin(self, prompt_token_ids: Sequence[int], salt: str = "") -> PinnedPrefix:
        """Keep what is cached of this prompt until `unpin`, whatever else needs blocks.

        RequestError when nothing of it is cached, or when a request of `max_model_len` tokens would not fit beside it.
        """
        return self._pinned.pin(prompt_token_ids, salt)

    def compact(self, prompt_token_ids: Sequence[int], salt: str = "", adapter: str = "") -> Future[CompactedPrefix]:
        """Compact a prefix once and for all: later requests that begin with its full blocks read what is left of it.

        The work is done by `step`, beside that of others. What is left is pinned, and found in tiers after a restart.
        Only with a cache that compacts on demand (`cache="kvzip=0.3"`, `"prefix+keydiff=0.5"`). RequestError when the
        prefix is too short, or fits nowhere.
        """
        self._refuse_closed()
        return self._compactions.begin(prompt_token_ids, salt, adapter)

    def unpin(self, pin_id: str) -> PinnedPrefix | None:
        """Let go of a pinned prefix and return it; None when there is no such pin."""
        return self._pinned.unpin(pin_id)

    def pins(self) -> list[PinnedPrefix]:
        return self._pinned.all()

    def stats(self) -> EngineStats:
        return engine_stats(self.scheduler, self.kv, self.recovery, self.tiering, self.checkpoints)

    def _log_cache(self, num_tokens: int) -> None:
        """Asked for by KVTROVE_CACHE_LOG, so it is not a debug message that a log level hides."""
        log.warning("step of %d tokens; %s", num_tokens, debug.line(self.kv))
        if self._cache_log > 1:
            log.warning("pool\n%s", debug.grid(self.kv))

    def _report(self, touched: list[Request]) -> list[RequestOutput]:
        self._compactions.advance()
        outputs = []
        for request in touched:
            if request.id not in self._texts:
                continue  # a probe of the engine's own
            text = self._texts[request.id]
            try:
                output = self._news(text)
            except Exception as error:
                self._fault(error, [], request)
                output = text.output()
            if output is not None:
                outputs.append(output)
            if request.finished:
                del self._texts[request.id]
                self._let_go(request)
        return outputs

    def _let_go(self, request: Request) -> None:
        """Of a request that has ended. A request and its sequences name each other: left alone they would wait for the
        collector of cycles by the ten thousand, and what is freed between them would be of little use to anyone.
        """
        self.checkpoints.ended(request)
        self.sessions.ended(request)
        if request.adapter:
            self._forget_adapters()
        request.sequences, request.completed = [], []
        self._ended += 1
        if self._ended % TRIM_EVERY == 0:
            return_freed_memory()

    def _news(self, text: RequestText) -> RequestOutput | None:
        for seq, stop, num_output in text.update():
            self.scheduler.stop(seq, stop, num_output)
        return text.output()
