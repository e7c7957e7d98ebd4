"""The words of recipes that select blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvtrove.config import ConfigError
from kvtrove.kv.selection.quest import Quest
from kvtrove.kv.selection.selector import Selector


@dataclass(frozen=True)
class Selecting:
    """A way to select blocks. make: the text behind "=", number of the layer -> the selector; ConfigError for a wrong
    text. argument: an example of that text."""

    help: str
    make: Callable[[str, int], Selector]
    argument: str


def _quest(text: str, layer: int) -> Quest:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"cache: quest={text} needs the tokens of the blocks that are read, such as quest=1024")
    return Quest(int(text))


SELECTORS: Mapping[str, Selecting] = {
    "quest": Selecting("of N tokens, the blocks that promise most; the others stay, unread", _quest, "1024"),
}
