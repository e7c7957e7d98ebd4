"""The engine on a thread of its own, and the asyncio side of it. Only messages cross the line:

    event loop  --  Add, Abort, Call, Stop       ->  inbox    engine thread: read the inbox, step, read the inbox, ...
    event loop  <-  one call_soon_threadsafe per step  --     replies and outputs of that step

Nothing that a client does - reading slowly, sending much - happens on the engine's thread.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from kvtrove.request import Guide, PoolingParams, RequestOutput, SamplingParams, SoftPin, sampling_of
from kvtrove.server.errors import engine_failed, engine_stopped, shut_down
from kvtrove.server.settings import Limits
from kvtrove.server.watchdog import StepTimeoutError, Watchdog
from kvtrove.tiering import LONGEST_REST

if TYPE_CHECKING:
    from kvtrove.engine import Engine
    from kvtrove.engine_stats import EngineStats

log = logging.getLogger(__name__)
T = TypeVar("T")


def scope_of(salt: str, adapter: str) -> str:
    """Of prompts that can have blocks in common."""
    return f"{adapter}:{salt}" if adapter else salt


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """The arguments of `Engine.add`, and what the reports say of the prompt.

    num_kept: its tokens that are an earlier answer's, as they were drawn. session: `prompt_cache_key`.
    """

    id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams | PoolingParams
    prompt: str | None = None
    salt: str = ""
    guide: Guide | None = None
    num_kept: int = 0
    soft_pins: Sequence[SoftPin] = ()
    session: str = ""
    adapter: str = ""

    def add_to(self, engine: Engine) -> None:
        more: dict[str, Any] = {"guide": self.guide, "soft_pins": self.soft_pins, "session": self.session}
        more |= {"adapter": self.adapter}
        engine.add(self.id, self.prompt_token_ids, self.params, prompt=self.prompt, salt=self.salt, **more)

    @property
    def scope(self) -> str:
        """Only prompts of one scope can have blocks in common."""
        return scope_of(self.salt, self.adapter)

    @property
    def sampling(self) -> SamplingParams:
        return sampling_of(self.params)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the engine. `time`: its end on the monotonic clock; `seconds`: how long it took."""

    time: float
    seconds: float
    outputs: list[RequestOutput]
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class _Add:
    requests: Sequence[EngineRequest]
    reply: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[[Engine], Any]
    reply: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


@dataclass(frozen=True, slots=True)
class _Wake:
    """There is news from the tiers of the cache."""


@dataclass(frozen=True, slots=True)
class _Reply:
    future: asyncio.Future[Any]
    value: Any
    error: Exception | None = None


_Message = _Add | _Abort | _Call | _Stop | _Wake


class OutputStream:
    """What the engine says about one or more requests, in the order in which it says it. Event loop only."""

    def __init__(self, engine: EngineThread, request_ids: Sequence[str]) -> None:
        self._engine = engine
        self._index = {request_id: i for i, request_id in enumerate(request_ids)}
        self._unfinished = set(request_ids)
        self._news: asyncio.Queue[RequestOutput | Exception] = asyncio.Queue()

    @property
    def finished(self) -> bool:
        """Whether everything has been read."""
        return not self._unfinished and self._news.empty()

    async def next(self) -> tuple[int, RequestOutput]:
        """(index of the request, its news). Raises what ended it, or ApiError when the engine fails."""
        news = await self._news.get()
        if isinstance(news, Exception):
            raise news
        if news.error is not None:
            raise news.error
        return self._index[news.request_id], news

    def push(self, output: RequestOutput) -> None:
        if output.finished:
            self._unfinished.discard(output.request_id)
        self._news.put_nowait(output)

    def fail(self, error: Exception) -> None:
        self._unfinished.clear()
        self._news.put_nowait(error)

    def give_up(self, error: Exception) -> None:
        """Abort what still runs; whoever reads the stream gets `error` at its end."""
        self.close()
        self.fail(error)

    def close(self) -> None:
        """Abort what still runs; its blocks are free before the next step begins."""
        self._engine.forget(self._index, self._unfinished)
        self._unfinished.clear()


class EngineThread:
    """Owns the engine. All methods are called on the event loop.

    on_step is called there after every step. A step that raises, which is one after which the engine cannot go on, or
    that never ends, ends the thread: every request is told, `error` is set, whatever comes later gets an ApiError at
    once, and `on_death` is called. step_timeout: seconds.
    """

    def __init__(
        self,
        engine: Engine,
        on_step: Callable[[Step], None] = lambda step: None,
        step_timeout: float = Limits.step_timeout,
    ) -> None:
        self.engine = engine
        self.on_death: Callable[[], None] = lambda: None
        self.stuck = False
        self._watchdog = Watchdog(step_timeout, self._give_up)
        engine.guard = lambda: self._watchdog
        engine.tiering.wake = lambda: self._inbox.put(_Wake())
        self.stats = engine.stats()
        self.error: BaseException | None = None
        self._on_step = on_step
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._replies: list[_Reply] = []  # to the messages read since the last delivery; engine thread only
        self._on_the_way = 0  # requests that were sent to the engine and not yet answered; event loop only
        self._asked: set[asyncio.Future[Any]] = set()  # replies that somebody waits for; event loop only
        self._woken = False  # the tiers had news; engine thread only
        self._silent = True  # nothing has happened since the last delivery; engine thread only
        self._streams: dict[str, OutputStream] = {}  # event loop only
        self._thread = threading.Thread(target=self._run, name="kvtrove-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    # ---- the event loop's side ----

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        self._watchdog.start()

    async def stop(self) -> None:
        """End the thread after its current step; what still runs is told so. A second call does nothing more."""
        self._inbox.put(_Stop())
        if not self.stuck:
            await asyncio.to_thread(self._thread.join)
        self._watchdog.stop()
        self._fail_all(shut_down())

    @property
    def alive(self) -> bool:
        return self.error is None and self._thread.is_alive()

    @property
    def num_waiting(self) -> int:
        """Sequences that have not begun, those included that the engine's thread has not even seen."""
        return self.stats.num_waiting + self._on_the_way

    @property
    def degraded(self) -> bool:
        """Whether a step has failed, or hangs, and it is still being found out whose fault it is."""
        return self.stats.faults.degraded or self._watchdog.late

    async def submit(self, requests: Sequence[EngineRequest]) -> OutputStream:
        """Queue requests, all of them or none. RequestError when one can never be served."""
        stream = OutputStream(self, [request.id for request in requests])
        self._streams.update((request.id, stream) for request in requests)
        self._on_the_way += len(requests)
        try:
            await self._ask(lambda reply: _Add(requests, reply))
        except BaseException:
            stream.close()
            raise
        finally:
            self._on_the_way -= len(requests)
        return stream

    async def call(self, function: Callable[[Engine], T]) -> T:
        """Run `function` on the engine's thread between two steps. It must be quick and must not raise in vain."""
        result: T = await self._ask(lambda reply: _Call(function, reply))
        return result

    def forget(self, request_ids: Sequence[str] | dict[str, int], unfinished: set[str]) -> None:
        """No news of these any more; the unfinished ones are aborted."""
        for request_id in request_ids:
            self._streams.pop(request_id, None)
        for request_id in unfinished:
            self._inbox.put(_Abort(request_id))

    async def _ask(self, message: Callable[[asyncio.Future[Any]], _Message]) -> Any:
        if not self.alive:
            raise engine_stopped()
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.add(reply)
        self._inbox.put(message(reply))
        try:
            return await reply
        finally:
            self._asked.discard(reply)

    def _deliver(self, replies: list[_Reply], stats: EngineStats, step: Step | None) -> None:
        self.stats = stats
        for reply in replies:
            _settle(reply)
        if step is None:
            return
        for output in step.outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                stream.push(output)
                if output.finished:
                    del self._streams[output.request_id]
        self._on_step(step)

    def _died(self, error: BaseException) -> None:
        self.error = error
        self._fail_all(engine_failed(error))
        self.on_death()

    def _fail_all(self, error: Exception) -> None:
        for stream in set(self._streams.values()):
            stream.fail(error)
        self._streams.clear()
        for reply in self._asked:
            _settle(_Reply(reply, None, error))

    # ---- the engine's thread ----

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            log.critical("the engine failed and has stopped", exc_info=error)
            self._post(self._died, error)

    def _turn(self) -> bool:
        """Read the inbox and make a step. False: stop."""
        try:
            if not self._read_inbox():
                return False
            self._send(self._step() if self.engine.has_unfinished_requests() else None)
        except StepTimeoutError:
            log.warning("a step ended at the very moment at which it was told to")
        return True

    def _give_up(self) -> None:
        """Called by the watchdog: the thread will not come back."""
        self.stuck = True
        self._post(self._died, StepTimeoutError())

    def _read_inbox(self) -> bool:
        """Handle every message that is there; with nothing to do and nothing to tell, wait for one. False: stop."""
        while True:
            try:
                message = self._inbox.get(timeout=self._patience())
            except queue.Empty:
                return True
            if isinstance(message, _Stop):
                return False
            if isinstance(message, _Wake):
                self._woken = True
            else:
                self._handle(message)

    def _patience(self) -> float | None:
        """Seconds to wait for a message: none while there is work or something to tell, any time when all is done."""
        woken, self._woken = self._woken, False
        if woken or not self._silent:
            return 0.0
        if self.engine.has_unfinished_requests():
            return LONGEST_REST if self.engine.is_waiting else 0.0
        return LONGEST_REST if self.engine.tend() else None

    def _handle(self, message: _Message) -> None:
        self._silent = False
        if isinstance(message, _Abort):
            self.engine.abort(message.request_id)
        elif isinstance(message, _Add):
            self._answer(message.reply, lambda: self._add(message.requests))
        elif isinstance(message, _Call):
            self._answer(message.reply, lambda: message.function(self.engine))

    def _answer(self, reply: asyncio.Future[Any], work: Callable[[], Any]) -> None:
        try:
            self._replies.append(_Reply(reply, work()))
        except Exception as error:
            self._replies.append(_Reply(reply, None, error))

    def _add(self, requests: Sequence[EngineRequest]) -> None:
        for done, r in enumerate(requests):
            try:
                r.add_to(self.engine)
            except Exception:
                for added in requests[:done]:
                    self.engine.abort(added.id)
                raise

    def _step(self) -> Step:
        start = time.monotonic()
        outputs = self.engine.step()
        end = time.monotonic()
        return Step(end, end - start, outputs, self.engine.stats())

    def _send(self, step: Step | None) -> None:
        replies, self._replies, self._silent = self._replies, [], True
        self._post(self._deliver, replies, self.engine.stats() if step is None else step.stats, step)

    def _post(self, function: Callable[..., None], *args: Any) -> None:
        assert self._loop is not None, "start() was not called"
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            log.debug("the event loop has ended before the engine")


def _settle(reply: _Reply) -> None:
    if reply.future.done():
        return  # whoever asked has left
    if reply.error is not None:
        reply.future.set_exception(reply.error)
    else:
        reply.future.set_result(reply.value)
