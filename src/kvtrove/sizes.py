"""Sizes and counts as people write them, and the error for settings that cannot work.

Sizes are bytes (``"8GiB"``, ``"512MB"``); token counts accept ``"32k"``.
"""

from __future__ import annotations

import difflib
import re

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


class ConfigError(ValueError):
    """A setting is unknown or has a value that cannot work; the message names the one that does."""


COUNT = r"[1-9]\d{0,11}"
"""A number of tokens, or another one from 1 on, in a word of a recipe: none is too large to be computed with."""


def parse_size(text: str | int, what: str = "size") -> int:
    """Bytes of ``"8GiB"``, ``"8G"`` (decimal), ``"512 MiB"`` or a plain number."""
    if isinstance(text, int) and not isinstance(text, bool):
        size = text
    else:
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", str(text).upper())
        if not found or found[2] not in _UNITS:
            raise ConfigError(f"{what}: cannot read {text!r} as a size; write for example 8GiB, 512MiB or 2000000000")
        size = int(float(found[1]) * _UNITS[found[2]])
    if size <= 0:
        raise ConfigError(f"{what}: {text!r} must be larger than zero")
    return size


def parse_tokens(text: str | int, what: str = "tokens") -> int:
    """A token count: ``4096``, ``"32k"`` (= 32 x 1024, as context lengths are meant) or ``"1M"``."""
    if isinstance(text, int) and not isinstance(text, bool):
        count = text
    else:
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(k|ki|m|mi)?\s*", str(text).lower())
        if not found:
            raise ConfigError(f"{what}: cannot read {text!r} as a number of tokens; write for example 4096 or 32k")
        count = int(float(found[1]) * {"k": 1024, "ki": 1024, "m": 2**20, "mi": 2**20}.get(found[2], 1))
    if count <= 0:
        raise ConfigError(f"{what}: {text!r} must be larger than zero")
    return count


def nearest(word: str, known: object, alike: float = 0.5) -> str:
    """``" (did you mean 'max_model_len'?)"`` or an empty string: the tail of every unknown-name message.

    alike: share of characters that both must have in their order. Names of files have much in common anyhow.
    """
    close = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=alike)  # type: ignore[attr-defined]
    return f" (did you mean {close[0]!r}?)" if close else ""
