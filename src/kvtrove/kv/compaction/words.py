"""The words of recipes that drop tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from kvtrove.config import ConfigError
from kvtrove.kv.compaction.budgets import AdaKV, Everywhere
from kvtrove.kv.compaction.compactor import AfterPrompt, Compactor, streaming
from kvtrove.kv.compaction.decoding import WhileDecoding, h2o, triattention
from kvtrove.kv.compaction.scores import RECENT, SCORES, SINKS, STATISTICS
from kvtrove.kv.compaction.surrogate import surrogate
from kvtrove.kv.formats.calibration import read_calibration
from kvtrove.sizes import COUNT


@dataclass(frozen=True)
class Dropping:
    """A way to drop tokens. make: the text behind "=" -> the compactor; ConfigError for a wrong text."""

    help: str
    make: Callable[[str], Compactor]
    argument: str


def _budget(word: str, text: str, behind: str = "") -> float | int:
    """A share of the prompt as a float, a number of tokens as an int. behind: what else the word needs."""
    if re.fullmatch(COUNT, text) and text != "1":
        return int(text)
    if re.fullmatch(r"0?\.\d*[1-9]\d*|1(\.0*)?", text):
        return float(text)
    raise ConfigError(
        f"cache: {word}={text} is no budget: take a share of the prompt that stays, up to 1 ({word}=0.5{behind}), or a "
        f"number of tokens ({word}=2048{behind})"
    )


def _after_prompt(word: str, text: str) -> Compactor:
    method, budget = SCORES[word], _budget(word, text)
    later = method.reconstructs
    return AfterPrompt(
        *(word, budget, method.score, method.window, method.recent),
        contiguous=method.contiguous,
        budgets=method.budgets,
        on_demand=later,
        reconstructs=later,
        reads_values=method.reads_values,
    )


def _streaming(text: str) -> Compactor:
    found = re.fullmatch(rf"(\d{{1,12}})\+({COUNT})", text)
    if found is None:
        raise ConfigError(
            f"cache: streaming={text} is not understood: give the tokens at the beginning that stay and those of the "
            "window behind them, such as streaming=4+1024"
        )
    return streaming(*map(int, found.groups()))


@dataclass(frozen=True)
class Variant:
    """A change of a way to drop tokens, such as adakv+snapkv=0.2. change: that way and the text behind "=" -> another.

    argument: an example of the text, which may be left out.
    """

    help: str
    change: Callable[[Compactor, str], Compactor]
    argument: str


def _adakv(compactor: Compactor, text: str) -> Compactor:
    if text and not re.fullmatch(r"0?\.\d+|[01](\.0*)?", text):
        raise ConfigError(f"cache: adakv={text}: give the share of a head's budget that is safe, such as adakv=0.2")
    if not isinstance(compactor, AfterPrompt) or compactor.contiguous or compactor.budgets:
        apart = ", ".join(word for word, method in SCORES.items() if not (method.contiguous or method.budgets))
        raise ConfigError(f"cache: adakv shares out what all heads of a layer keep: it goes with one of {apart}")
    return replace(compactor, budgets=AdaKV(float(text)) if text else AdaKV())


def _prefix(compactor: Compactor, text: str) -> Compactor:
    if text or not isinstance(compactor, AfterPrompt) or compactor.contiguous:
        apart = ", ".join((*(word for word, method in SCORES.items() if not method.contiguous), "surrogate"))
        raise ConfigError(f"cache: prefix takes no value, and goes with one of {apart}: prefix+keydiff=0.5")
    return replace(compactor, on_demand=True)


def _h2o(text: str) -> Compactor:
    return WhileDecoding("h2o", _budget("h2o", text), h2o, STATISTICS, recent=0.5, remembers=True)


def _triattention(text: str) -> Compactor:
    budget, at, path = text.partition("@")
    if not at or not re.fullmatch(COUNT, budget):
        raise ConfigError(
            f"cache: triattention={text} needs the drawn tokens that stay and a calibration, such as "
            "triattention=2048@FILE; `kvtrove calibrate` makes it"
        )
    calibration = read_calibration(path)
    score = partial(triattention, calibration=calibration)
    return WhileDecoding("triattention", int(budget), score, keeps_prompt=True, calibration=calibration)


SAFE = 0.2
"""Of a head's share, where scores are predicted. Without it some heads of SmolLM2 keep nothing between the first and
the last tokens, and its KL at 4:1 is four times as high.
"""


def _surrogate(text: str) -> Compactor:
    budget, at, path = text.partition("@")
    share = _budget("surrogate", budget, "@FILE")
    if not at:
        raise ConfigError(
            f"cache: surrogate={text} needs a gate, such as surrogate={text}@FILE; `kvtrove calibrate MODEL "
            "--surrogate --out FILE` makes it"
        )
    calibration = read_calibration(path)
    return AfterPrompt(
        *("surrogate", share, partial(surrogate, calibration=calibration)),
        recent=RECENT - SINKS,
        sinks=SINKS,
        budgets=Everywhere(SAFE),
        reads_values=True,
        calibration=calibration,
    )


COMPACTORS: Mapping[str, Dropping] = {
    "keydiff": Dropping("of a prompt, the keys that differ most", partial(_after_prompt, "keydiff"), "0.5"),
    "snapkv": Dropping("of a prompt, what its last tokens read", partial(_after_prompt, "snapkv"), "0.2"),
    "finch": Dropping("as snapkv, at positions that follow each other", partial(_after_prompt, "finch"), "0.2"),
    "tova": Dropping("of a prompt, what its last token reads", partial(_after_prompt, "tova"), "0.2"),
    "pyramid": Dropping("as snapkv, more in early layers", partial(_after_prompt, "pyramid"), "0.2"),
    "kvzip": Dropping("of prefixes on demand, what repeating them reads", partial(_after_prompt, "kvzip"), "0.3"),
    "expected": Dropping("of a prompt, what later queries will read", partial(_after_prompt, "expected"), "0.5"),
    "surrogate": Dropping("of a prompt, what kvzip is predicted to keep", _surrogate, "0.3@FILE"),
    "h2o": Dropping("again and again, what was read most so far", _h2o, "0.2"),
    "triattention": Dropping("of drawn tokens, what is read from afar", _triattention, "2048@FILE"),
    "streaming": Dropping("the first tokens and a window, at positions of their own", _streaming, "4+1024"),
}
VARIANTS: Mapping[str, Variant] = {
    "adakv": Variant("with another word: heads of a layer share what they keep", _adakv, "0.2"),
    "prefix": Variant("with another word: prefixes on demand instead of prompts", _prefix, ""),
}
