"""Before the load: is the server there, which model, which fields does it take, how long is a word in its tokens?

Every answer that makes a measurement impossible is an error that says what to change.
"""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from kvtrove.bench.client import Client, Exchange
from kvtrove.bench.record import OK
from kvtrove.bench.stream import printable
from kvtrove.bench.words import EVERY_WORD, WORDS
from kvtrove.config import ConfigError, nearest

GUESSED_TOKENS_PER_WORD = 1.3
_ANSWER_TOKENS = 4
_REFUSED = ("http 400", "http 422")  # what a server says to fields that it does not know
_SHOWN_MODELS = 20


class ProbeError(ConfigError):
    """The server cannot be measured; the message says why and what to change."""


@dataclass(frozen=True)
class Probe:
    """What was learned. overhead: prompt tokens beside the text (chat template). notes: what limits the measurement."""

    model: str
    models: tuple[str, ...]
    tokens_per_word: float
    overhead: int
    notes: tuple[str, ...] = ()


async def probe(client: Client) -> Probe:
    """Ask for the models and send a few tiny requests; sets the client's model and dialect. Raises ProbeError."""
    models = await _models(client)
    if not client.model:
        if not models:
            raise ProbeError(f"{client.target.url}/models offers no model; name one with --model")
        client.model = models[0]
    once = await _first_answer(client, EVERY_WORD, models)
    twice = await _ask(client, f"{EVERY_WORD} {EVERY_WORD}")
    notes = _notes(client, once)
    if twice.status != OK:
        raise ProbeError(f"{client.path} answered a first request, but not a second: {twice.status}: {twice.error}")
    short, long = once.transcript.prompt_tokens, twice.transcript.prompt_tokens
    if short is None or long is None or long <= short:
        notes.append(
            f"the server does not count prompt tokens: lengths are guessed at {GUESSED_TOKENS_PER_WORD} per word"
        )
        return Probe(client.model, models, GUESSED_TOKENS_PER_WORD, 0, tuple(notes))
    # Twice the same words: what is more is the words' own, and what was there before is the overhead.
    return Probe(client.model, models, (long - short) / len(WORDS), max(0, 2 * short - long), tuple(notes))


async def _models(client: Client) -> tuple[str, ...]:
    """Names of the models; empty when the server has no list."""
    url = client.target.url
    try:
        response = await client.models()
    except httpx.HTTPError as error:
        raise ProbeError(
            f"{url} cannot be reached ({str(error) or type(error).__name__}): "
            "is the server running, and is this its --url?"
        ) from error
    if response.status_code in (401, 403):
        raise _unauthorised(client, response.status_code)
    if response.status_code != 200:
        return ()
    try:
        return tuple(printable(str(model["id"])) for model in response.json()["data"])
    except (ValueError, LookupError, TypeError):
        return ()


async def _ask(client: Client, text: str) -> Exchange:
    exchange = Exchange()
    await client.send([{"role": "user", "content": text}], _ANSWER_TOKENS, exchange)
    return exchange


async def _first_answer(client: Client, text: str, models: tuple[str, ...]) -> Exchange:
    """The first answer that the server gives, in the richest dialect that it takes."""
    for dialect in client.dialect.ladder():
        client.dialect = dialect
        exchange = await _ask(client, text)
        if exchange.status not in _REFUSED:
            break
    if exchange.status != OK:
        raise _explained(client, exchange, models)
    return exchange


def _explained(client: Client, exchange: Exchange, models: tuple[str, ...]) -> ProbeError:
    match exchange.status:
        case "http 401" | "http 403":
            return _unauthorised(client, int(exchange.status[5:]))
        case "http 404" if models and client.model not in models:
            shown = ", ".join(models[:_SHOWN_MODELS]) + (", ..." if len(models) > _SHOWN_MODELS else "")
            return ProbeError(
                f"the server has no model {client.model!r}{nearest(client.model, models)}; it offers: {shown}"
            )
        case "http 404" | "http 405":
            other = "completions" if client.target.endpoint == "chat" else "chat"
            return ProbeError(f"{client.path} is not there ({exchange.error}): try --endpoint {other} or another --url")
        case "no stream":
            return ProbeError(
                f"{client.path} does not stream ({exchange.error}): times to tokens cannot be measured; "
                "switch streaming on in the server"
            )
        case "timeout":
            return ProbeError(f"{client.path} gave {exchange.error}: is the server still loading? Or raise --timeout")
    return ProbeError(f"{client.path} cannot answer a first request: {exchange.status}: {exchange.error}")


def _unauthorised(client: Client, status: int) -> ProbeError:
    if client.target.api_key:
        return ProbeError(f"{client.target.url} refuses the API key ({status}): check --api-key or OPENAI_API_KEY")
    return ProbeError(f"{client.target.url} wants an API key ({status}): give --api-key or set OPENAI_API_KEY")


def _notes(client: Client, answer: Exchange) -> list[str]:
    """What the reader of the figures must know about this server."""
    notes = []
    if client.target.ignore_eos and not client.dialect.ignore_eos:
        notes.append("the server does not take ignore_eos: answers may be shorter than asked for")
    source = answer.transcript.source
    if source == "final":
        notes.append("tokens are counted at the end of each answer and spread over its chunks: ITL is approximate")
    if source == "chunks":
        notes.append("the server sends no usage: every chunk is counted as one token")
    return notes
