"""Log-probabilities in the shapes of the two completion APIs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvtrove.request import Logprob, TokenLogprobs
from kvtrove.server.protocol.chat import ChatLogprobs, TokenLogprob, TopLogprob
from kvtrove.server.protocol.completions import CompletionLogprobs
from kvtrove.text.token_bytes import token_bytes
from kvtrove.text.tokenizer import Tokenizer

LOWEST = -9999.0  # JSON has no infinity; OpenAI's value for "never"

TokenText = Callable[[int], str]


def completion_logprobs(
    token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None], token_text: TokenText, offset: int
) -> CompletionLogprobs:
    """One entry per token; None (the first token of a prompt) has no probability. offset: of the first token's text."""
    result: CompletionLogprobs = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token_id, entry in zip(token_ids, entries, strict=True):
        text = _text(token_id, None if entry is None else entry[token_id], token_text)
        result["tokens"].append(text)
        result["text_offset"].append(offset)
        offset += len(text)
        if entry is None:
            result["token_logprobs"].append(None)
            result["top_logprobs"].append(None)
            continue
        result["token_logprobs"].append(_value(entry[token_id]))
        top: dict[str, float] = {}
        for other, logprob in sorted(entry.items(), key=lambda item: item[1].rank):
            top.setdefault(_text(other, logprob, token_text), _value(logprob))  # tokens may share a spelling
        result["top_logprobs"].append(top)
    return result


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    """Those of a text and of its continuation."""
    return {
        "tokens": first["tokens"] + second["tokens"],
        "token_logprobs": first["token_logprobs"] + second["token_logprobs"],
        "top_logprobs": first["top_logprobs"] + second["top_logprobs"],
        "text_offset": first["text_offset"] + second["text_offset"],
    }


def chat_logprobs(
    token_ids: Sequence[int], entries: Sequence[TokenLogprobs], top_logprobs: int, tokenizer: Tokenizer
) -> ChatLogprobs:
    """One entry per token with its `top_logprobs` likeliest alternatives, best first."""
    content: list[TokenLogprob] = []
    for token_id, entry in zip(token_ids, entries, strict=True):
        ranked = sorted(entry.items(), key=lambda item: item[1].rank)
        alternatives = [_entry(i, p, tokenizer) for i, p in ranked if p.rank <= top_logprobs]
        content.append({**_entry(token_id, entry[token_id], tokenizer), "top_logprobs": alternatives})
    return {"content": content}


def _entry(token_id: int, logprob: Logprob, tokenizer: Tokenizer) -> TopLogprob:
    text = _text(token_id, logprob, tokenizer.token_text)
    written = token_bytes(tokenizer.backend.id_to_token(token_id), text)
    return {"token": text, "logprob": _value(logprob), "bytes": list(written)}


def _text(token_id: int, logprob: Logprob | None, token_text: TokenText) -> str:
    known = logprob.decoded_token if logprob is not None else None
    return token_text(token_id) if known is None else known


def _value(logprob: Logprob) -> float:
    return max(logprob.logprob, LOWEST)
