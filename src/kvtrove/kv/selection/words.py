"""The words of recipes that select blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kvtrove.config import ConfigError
from kvtrove.kv.formats.calibration import read_calibration
from kvtrove.kv.selection.double_sparsity import DoubleSparsity
from kvtrove.kv.selection.quest import Quest
from kvtrove.kv.selection.selector import Selector
from kvtrove.sizes import COUNT


@dataclass(frozen=True)
class Selecting:
    """A way to select blocks. make: the text behind "=", number of the layer -> the selector; ConfigError for a wrong
    text. argument: an example of that text."""

    help: str
    make: Callable[[str, int], Selector]
    argument: str


def _quest(text: str, layer: int) -> Quest:
    if not re.fullmatch(COUNT, text):
        raise ConfigError(f"cache: quest={text} needs the tokens of the blocks that are read, such as quest=1024")
    return Quest(int(text))


def _double_sparsity(text: str, layer: int) -> DoubleSparsity:
    found = re.fullmatch(rf"1/({COUNT})@(.+)", text)
    if found is None or int(found[1]) < 2:
        raise ConfigError(
            f"cache: doublesparsity={text} needs the part of tokens and channels that is read, and a calibration, such "
            "as doublesparsity=1/16@FILE"
        )
    calibration = read_calibration(found[2])
    return DoubleSparsity(int(found[1]), f"k.{layer}.channels", calibration.digest, calibration)


SELECTORS: Mapping[str, Selecting] = {
    "quest": Selecting("of N tokens, the blocks that promise most; the others stay, unread", _quest, "1024"),
    "doublesparsity": Selecting("one block of 16, by one channel of 16", _double_sparsity, "1/16@FILE"),
}
