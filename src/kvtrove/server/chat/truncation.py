"""Making a conversation fit by leaving out whole turns from its middle.

    system | turn 0 | turn 1 | turn 2 | ... | newest turn          a turn: a user message and all that answers it
    keep   | drop  ...         | keep .................. |

The cut moves in steps of STRIDE turns: while a conversation grows, the prompt then begins alike for several requests
in a row, and the prefix cache keeps serving it. A cut that moved with every turn would leave it nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

from kvtrove.server.chat.conversation import Message

STRIDE = 4


def turns(messages: Sequence[Message]) -> list[list[int]]:
    """Indices of the messages of every turn; system messages belong to none."""
    groups: list[list[int]] = []
    for index, message in enumerate(messages):
        if message["role"] == "system":
            continue
        if message["role"] == "user" or not groups:
            groups.append([])
        groups[-1].append(index)
    return groups


class Cuts(Sequence[list[int]]):
    """What may be dropped, in growing order: indices of the messages of the first STRIDE, 2 STRIDE, ... turns.

    Each is made when it is asked for: all of them together would grow with the square of the conversation.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self._turns = turns(messages)
        last = len(self._turns) - 1
        self._counts = [*range(STRIDE, last, STRIDE), *([last] if last > 0 else [])]

    def __len__(self) -> int:
        return len(self._counts)

    @overload
    def __getitem__(self, at: int) -> list[int]: ...

    @overload
    def __getitem__(self, at: slice) -> list[list[int]]: ...

    def __getitem__(self, at: int | slice) -> list[int] | list[list[int]]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        return [index for group in self._turns[: self._counts[at]] for index in group]


def smallest_cut(options: Sequence[list[int]], fits: Callable[[list[int]], bool]) -> list[int] | None:
    """The first of `options` that fits (if one does, all after it do), or None.

    Begins with the largest cut and keeps twice as much each time until that does not fit any more: what `fits` has to
    look at stays within about twice of what fits, however long the conversation is. Asks about 2 log2 of them.
    """
    if not options or not fits(options[-1]):
        return None
    high, step = len(options) - 1, 1
    while high - step >= 0 and fits(options[high - step]):
        high, step = high - step, 2 * step
    low = max(0, high - step + 1)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(options[middle]) else (middle + 1, high)
    return options[low]
