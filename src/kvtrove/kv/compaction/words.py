"""The words of recipes that drop tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from kvtrove.config import ConfigError
from kvtrove.kv.compaction.compactor import AfterPrompt, Compactor, streaming
from kvtrove.kv.compaction.scores import SCORES


@dataclass(frozen=True)
class Dropping:
    """A way to drop tokens. make: the text behind "=" -> the compactor; ConfigError for a wrong text."""

    help: str
    make: Callable[[str], Compactor]
    argument: str


def _budget(word: str, text: str) -> float | int:
    """A share of the prompt as a float, a number of tokens as an int."""
    if re.fullmatch(r"[1-9]\d*", text) and text != "1":
        return int(text)
    if re.fullmatch(r"0?\.\d*[1-9]\d*|1(\.0*)?", text):
        return float(text)
    raise ConfigError(
        f"cache: {word}={text} is no budget: take a share of the prompt that stays, up to 1 ({word}=0.5), or a number "
        f"of tokens ({word}=2048)"
    )


def _after_prompt(word: str, text: str) -> Compactor:
    method = SCORES[word]
    return AfterPrompt(word, _budget(word, text), method.score, method.window, method.recent, method.contiguous)


def _streaming(text: str) -> Compactor:
    found = re.fullmatch(r"(\d+)\+([1-9]\d*)", text)
    if found is None:
        raise ConfigError(
            f"cache: streaming={text} is not understood: give the tokens at the beginning that stay and those of the "
            "window behind them, such as streaming=4+1024"
        )
    return streaming(*map(int, found.groups()))


COMPACTORS: Mapping[str, Dropping] = {
    "keydiff": Dropping("of a prompt, the keys that differ most", partial(_after_prompt, "keydiff"), "0.5"),
    "snapkv": Dropping("of a prompt, what its last tokens read", partial(_after_prompt, "snapkv"), "0.2"),
    "finch": Dropping("as snapkv, at positions that follow each other", partial(_after_prompt, "finch"), "0.2"),
    "tova": Dropping("of a prompt, what its last token reads", partial(_after_prompt, "tova"), "0.2"),
    "streaming": Dropping("the first tokens and a window, at positions of their own", _streaming, "4+1024"),
}
