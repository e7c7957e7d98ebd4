"""One request to an OpenAI-compatible server, timed as it streams."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from kvtrove.bench.record import OK, TIMEOUT, UNFINISHED
from kvtrove.bench.settings import Target
from kvtrove.bench.stream import Events, Transcript, error_message

CONNECT_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class Dialect:
    """Which of the optional fields the server takes. Dropped one by one, in this order, when it refuses them."""

    continuous_usage: bool = True
    ignore_eos: bool = True
    final_usage: bool = True

    def fields(self) -> dict[str, Any]:
        options = {"include_usage": self.final_usage, "continuous_usage_stats": self.continuous_usage}
        wanted = {name: True for name, value in options.items() if value}
        return ({"ignore_eos": True} if self.ignore_eos else {}) | ({"stream_options": wanted} if wanted else {})

    def ladder(self) -> list[Dialect]:
        """This dialect, then plainer ones."""
        steps = [self]
        for name in ("continuous_usage", "ignore_eos", "final_usage"):
            if getattr(self, name):
                steps.append(replace(steps[-1], **{name: False}))
        return steps


class Exchange:
    """A request under way; what is known of it can be read at any time, also after it was cancelled."""

    def __init__(self) -> None:
        self.sent = self.ended = 0.0
        self.status, self.error = UNFINISHED, ""
        self.transcript = Transcript()

    def fail(self, status: str, error: str) -> None:
        self.status, self.error = status, error


class Client:
    """Connections to one server. clock: seconds; every time in an Exchange is read from it.

    transport: how bytes travel (httpx); tests bring their own.
    """

    def __init__(
        self, target: Target, clock: Callable[[], float], transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.target, self.clock = target, clock
        self.model = target.model or ""
        self.dialect = Dialect(ignore_eos=target.ignore_eos)
        headers = {"accept-encoding": "identity"}
        if target.api_key:
            headers["authorization"] = f"Bearer {target.api_key}"
        self._http = httpx.AsyncClient(
            headers=headers,
            transport=transport,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=not is_loopback(target.url),  # proxies are for the way out
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    @property
    def path(self) -> str:
        return f"{self.target.url}/{'chat/completions' if self.target.endpoint == 'chat' else 'completions'}"

    async def models(self) -> httpx.Response:
        """GET /models. Raises httpx.HTTPError when nobody answers."""
        return await self._http.get(f"{self.target.url}/models", timeout=CONNECT_TIMEOUT)

    async def send(self, messages: Sequence[Mapping[str, str]], output_tokens: int | None, exchange: Exchange) -> None:
        """Send one request and read its answer, or what went wrong, into `exchange`. Nothing is raised."""
        body = json.dumps(self.body(messages, output_tokens)).encode()
        exchange.sent = self.clock()
        try:
            async with asyncio.timeout(self.target.timeout):
                await self._stream(body, exchange)
        except TimeoutError:
            exchange.fail(TIMEOUT, f"no complete answer within {self.target.timeout:g} s")
        except httpx.HTTPError as error:
            exchange.fail(_word(error), str(error) or type(error).__name__)
        except (ValueError, TypeError, AttributeError) as error:  # the server's JSON is not what it should be
            exchange.fail("bad stream", str(error))
        finally:
            exchange.ended = self.clock()

    def body(self, messages: Sequence[Mapping[str, str]], output_tokens: int | None) -> dict[str, Any]:
        """The JSON of a request. For plain completions the conversation becomes one growing text."""
        if self.target.endpoint == "chat":
            asked: dict[str, Any] = {"messages": list(messages)}
        else:
            asked = {"prompt": "".join(message["content"] + "\n" for message in messages)}
        limit = {} if output_tokens is None else {"max_tokens": output_tokens}
        heat = {} if self.target.temperature is None else {"temperature": self.target.temperature}
        fields = self.dialect.fields()
        if output_tokens is None:
            fields.pop("ignore_eos", None)  # nothing else would end the answer
        return {"model": self.model, **asked, **limit, **heat, "stream": True, **fields, **self.target.extra_body}

    async def _stream(self, body: bytes, exchange: Exchange) -> None:
        headers = {"content-type": "application/json"}
        async with self._http.stream("POST", self.path, content=body, headers=headers) as response:
            if response.status_code != 200:
                exchange.fail(f"http {response.status_code}", _refusal(await response.aread()))
                return
            if "text/event-stream" not in response.headers.get("content-type", ""):
                exchange.fail("no stream", f"content-type {response.headers.get('content-type', 'is missing')}")
                return
            events = Events()
            async for data in response.aiter_bytes():
                time = self.clock()
                for payload in events.feed(data):
                    exchange.transcript.add(time, payload)
        _judge(exchange)


def _judge(exchange: Exchange) -> None:
    """How a stream that ended by itself has ended."""
    transcript = exchange.transcript
    if transcript.error is not None:
        exchange.fail("error in stream", transcript.error)
    elif not transcript.complete:
        exchange.fail("cut short", "the stream ended without a finish_reason")
    elif not transcript.arrivals():
        exchange.fail("empty answer", "the answer has no tokens")
    else:
        exchange.status = OK


def _refusal(body: bytes) -> str:
    try:
        return error_message(json.loads(body))
    except ValueError:
        return error_message(body[:1000].decode(errors="replace"))


def _word(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "no connection"
    return "disconnected" if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError) else "transport error"


def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
