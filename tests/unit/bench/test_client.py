"""One request against the fake server in virtual time: every time is exact, every failure has its name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import httpx
import pytest

from kvtrove.bench.client import Client, Dialect, Exchange, is_loopback
from kvtrove.bench.probe import GUESSED_TOKENS_PER_WORD, Probe, ProbeError, probe
from kvtrove.bench.settings import Target
from kvtrove.bench.words import WORDS
from tests.unit.bench.fake_openai import Behaviour, fake_server
from tests.unit.bench.virtual_time import StreamingASGITransport, run

URL = "http://127.0.0.1:8000"
TARGET = Target(URL, model="tiny")
T = TypeVar("T")


def with_client(
    behaviour: Behaviour, use: Callable[[Client], Coroutine[Any, Any, T]], target: Target = TARGET, **more: Any
) -> T:
    """What `use` returns, in virtual time."""

    async def main() -> T:
        transport = more.get("transport") or StreamingASGITransport(fake_server(behaviour))
        async with Client(target, asyncio.get_running_loop().time, transport) as client:
            return await use(client)

    return run(main())


def ask(behaviour: Behaviour, tokens: int | None = 4, **target: Any) -> Exchange:
    async def use(client: Client) -> Exchange:
        exchange = Exchange()
        await client.send([{"role": "user", "content": "hello"}], tokens, exchange)
        return exchange

    return with_client(behaviour, use, replace(TARGET, **target))


def look(behaviour: Behaviour, target: Target = TARGET, **more: Any) -> tuple[Probe, Dialect]:
    async def use(client: Client) -> tuple[Probe, Dialect]:
        return await probe(client), client.dialect

    return with_client(behaviour, use, target, **more)


# ---- a request ----


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_every_token_is_stamped_when_it_comes(endpoint: str) -> None:
    found = ask(Behaviour(ttft=0.3, gap=0.05), endpoint=endpoint)
    assert found.status == "ok"
    times = [time - found.sent for time, _ in found.transcript.arrivals()]
    assert times == pytest.approx([0.3, 0.35, 0.40, 0.45])
    assert [tokens for _, tokens in found.transcript.arrivals()] == [1, 1, 1, 1]


def test_the_role_that_opens_a_chat_is_no_token() -> None:
    """It comes at once, and would make every TTFT nearly zero."""
    found = ask(Behaviour(ttft=5.0))
    assert found.transcript.arrivals()[0][0] - found.sent == pytest.approx(5.0)


def test_chunks_of_several_tokens_are_counted_by_usage() -> None:
    found = ask(Behaviour(per_chunk=3), tokens=7)
    assert [tokens for _, tokens in found.transcript.arrivals()] == [3, 3, 1]
    assert found.transcript.source == "continuous"


@pytest.mark.parametrize(("usage", "source"), [("final", "final"), ("none", "chunks")])
def test_servers_that_count_less(usage: str, source: str) -> None:
    found = ask(Behaviour(usage=usage), tokens=4)
    assert found.transcript.source == source
    assert sum(tokens for _, tokens in found.transcript.arrivals()) == 4


def test_what_is_sent() -> None:
    behaviour = Behaviour()
    ask(behaviour, tokens=4, temperature=0.0, extra_body={"top_k": 3})
    [sent] = behaviour.requests
    assert sent.pop("said") == "hello"
    assert sent == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 4,
        "temperature": 0.0,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "top_k": 3,
    }


def test_without_a_length_the_model_must_be_able_to_stop() -> None:
    behaviour = Behaviour()
    ask(behaviour, tokens=None)
    assert not {"max_tokens", "ignore_eos"} & set(behaviour.requests[0])


def test_a_conversation_becomes_one_growing_text_for_completions() -> None:
    """The answer follows its prompt directly, as in the server's cache: the next prompt begins with both."""
    target = replace(TARGET, endpoint="completions")

    async def use(client: Client) -> list[str]:
        said = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
        return [client.body(said[:1], 1)["prompt"], client.body(said, 1)["prompt"]]

    first, second = with_client(Behaviour(), use, target)
    assert (first, second) == ("a\n", "a\nb\nc\n")
    assert second.startswith(first + "b")


# ---- how requests fail ----


def test_a_refusal_keeps_its_status_and_message() -> None:
    found = ask(Behaviour(fail=lambda prompt: (429, "too busy")))
    assert (found.status, found.error) == ("http 429", "too busy")
    assert found.ended >= found.sent


def test_an_answer_that_takes_too_long_is_abandoned_and_keeps_what_came() -> None:
    found = ask(Behaviour(ttft=1.0, gap=1.0), tokens=60, timeout=4.5)
    assert found.status == "timeout"
    assert found.error == "no complete answer within 4.5 s"
    assert found.ended - found.sent == pytest.approx(4.5)
    assert len(found.transcript.arrivals()) == 4


@pytest.mark.parametrize(
    ("breaks", "status", "message"),
    [
        ("error", "error in stream", "it broke"),
        ("cut", "cut short", "without a finish_reason"),
        ("garbage", "bad stream", "Expecting property name"),
    ],
)
def test_a_stream_that_breaks(breaks: str, status: str, message: str) -> None:
    found = ask(Behaviour(breaks=breaks))
    assert found.status == status
    assert message in found.error


def test_an_answer_without_tokens_is_not_a_fast_one() -> None:
    assert ask(Behaviour(), tokens=0).status == "empty answer"


class Broken(httpx.AsyncBaseTransport):
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (httpx.ConnectError("refused"), "no connection"),
        (httpx.ConnectTimeout("slow"), "no connection"),
        (httpx.ReadError("reset"), "disconnected"),
        (httpx.RemoteProtocolError("half an answer"), "disconnected"),
        (httpx.UnsupportedProtocol("odd"), "transport error"),
    ],
)
def test_a_broken_connection(error: Exception, status: str) -> None:
    async def use(client: Client) -> Exchange:
        exchange = Exchange()
        await client.send([{"role": "user", "content": "hello"}], 4, exchange)
        return exchange

    found = with_client(Behaviour(), use, transport=Broken(error))
    assert (found.status, found.error) == (status, str(error))


def test_a_cancelled_request_stays_unfinished_with_what_came() -> None:
    async def use(client: Client) -> Exchange:
        exchange = Exchange()
        sending = asyncio.create_task(client.send([{"role": "user", "content": "hello"}], 100, exchange))
        await asyncio.sleep(2.5)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        return exchange

    found = with_client(Behaviour(ttft=1.0, gap=1.0), use)
    assert found.status == "unfinished"
    assert found.ended == pytest.approx(2.5)
    assert len(found.transcript.arrivals()) == 2


@pytest.mark.parametrize(
    ("url", "loopback"),
    [(URL, True), ("http://localhost:1/v1", True), ("http://[::1]:80", True), ("https://example.org", False)],
)
def test_proxies_are_for_servers_elsewhere(url: str, loopback: bool) -> None:
    assert is_loopback(url) is loopback


# ---- the probe ----


def test_the_probe_measures_words_and_what_is_beside_them() -> None:
    found, dialect = look(Behaviour(tokens_per_word=1.5, overhead=11))
    assert found == Probe("tiny", ("tiny",), tokens_per_word=1.5, overhead=11)
    assert dialect == Dialect()


def test_without_a_name_the_first_model_is_taken() -> None:
    assert look(Behaviour(models=("one", "two")), Target(URL))[0].model == "one"
    with pytest.raises(ProbeError, match=r"/v1/models offers no model; name one with --model"):
        look(Behaviour(models=()), Target(URL))


@pytest.mark.parametrize(
    ("accepts", "expected"),
    [
        (("ignore_eos", "include_usage"), Dialect(continuous_usage=False)),
        (("include_usage",), Dialect(continuous_usage=False, ignore_eos=False)),
        ((), Dialect(continuous_usage=False, ignore_eos=False, final_usage=False)),
    ],
)
def test_fields_that_the_server_refuses_are_left_out(accepts: tuple[str, ...], expected: Dialect) -> None:
    found, dialect = look(Behaviour(accepts=accepts))
    assert dialect == expected
    assert bool(found.notes) is (dialect != Dialect())


def test_what_limits_the_measurement_is_said() -> None:
    none = look(Behaviour(usage="none"))[0]
    assert none.tokens_per_word == GUESSED_TOKENS_PER_WORD
    assert [note.split(":")[0] for note in none.notes] == [
        "the server sends no usage",
        "the server does not count prompt tokens",
    ]
    assert "ITL is approximate" in look(Behaviour(usage="final"))[0].notes[0]
    assert "answers may be shorter" in look(Behaviour(accepts=("include_usage",)))[0].notes[0]


def test_a_key_is_sent_and_its_absence_explained() -> None:
    behaviour = Behaviour(api_key="secret")
    assert look(behaviour, replace(TARGET, api_key="secret"))[0].model == "tiny"
    with pytest.raises(ProbeError, match=r"wants an API key \(401\): give --api-key or set OPENAI_API_KEY"):
        look(behaviour)
    with pytest.raises(ProbeError, match=r"refuses the API key \(401\): check --api-key") as caught:
        look(behaviour, replace(TARGET, api_key="wrong-one"))
    assert "wrong-one" not in str(caught.value)
    assert "secret" not in repr(replace(TARGET, api_key="secret"))


def test_an_unknown_model_is_answered_with_those_there_are() -> None:
    with pytest.raises(ProbeError, match=r"no model 'tinny' \(did you mean 'tiny'\?\); it offers: tiny, large"):
        look(Behaviour(models=("tiny", "large")), Target(URL, model="tinny"))


def test_an_endpoint_that_is_not_there() -> None:
    with pytest.raises(
        ProbeError, match=r"/v2/chat/completions is not there .*: try --endpoint completions or another"
    ):
        look(Behaviour(), Target(f"{URL}/v2", model="tiny"))


def test_a_server_that_does_not_stream() -> None:
    with pytest.raises(ProbeError, match=r"does not stream \(content-type application/json\): times to tokens cannot"):
        look(Behaviour(streams=False))


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(
        ProbeError, match=r"http://127.0.0.1:8000/v1 cannot be reached \(refused\): is the server running"
    ):
        look(Behaviour(), transport=Broken(httpx.ConnectError("refused")))


def test_a_server_that_still_loads() -> None:
    with pytest.raises(ProbeError, match="no complete answer within 3 s: is the server still loading"):
        look(Behaviour(ttft=10), replace(TARGET, timeout=3.0))


def test_a_server_that_fails() -> None:
    with pytest.raises(ProbeError, match="cannot answer a first request: http 500: out of memory"):
        look(Behaviour(fail=lambda prompt: (500, "out of memory")))
    long = Behaviour(fail=lambda prompt: (400, "prompt too long") if len(prompt.split()) > len(WORDS) else None)
    with pytest.raises(ProbeError, match="but not a second: http 400: prompt too long"):
        look(long)
