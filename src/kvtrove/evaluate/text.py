"""Ordinary text, cut into segments that each start with an empty cache."""

from __future__ import annotations

from pathlib import Path

from kvtrove.config import ConfigError
from kvtrove.text.tokenizer import Tokenizer


def read_text(path: str | None) -> str:
    """A UTF-8 file, or prose that the demo model was not trained on: docstrings of the standard library.

    The latter is the same for the same version of Python. ConfigError when the file cannot be read.
    """
    if path is None:
        from kvtrove.demo.prose import paragraphs

        return "\n\n".join(paragraphs("heldout"))
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"text: cannot read {path}: {reason}") from error


def segments(tokenizer: Tokenizer, text: str, context: int, limit: int) -> list[list[int]]:
    """The first `limit` tokens in runs of at most `context`, each after a BOS token where the tokenizer puts one.

    ConfigError when there is nothing to predict.
    """
    bos = tokenizer.backend.token_to_id(tokenizer.bos_token or "")
    start = [bos] if bos is not None and tokenizer.encode("")[:1] == [bos] else []
    tokens = tokenizer.encode(text, add_special_tokens=False)[:limit]
    step = context - len(start)
    found = [start + tokens[at : at + step] for at in range(0, len(tokens), step)]
    found = [segment for segment in found if len(segment) > 1]
    if not found:
        raise ConfigError(f"text: {len(tokens)} tokens leave nothing to predict; give a longer text")
    return found
