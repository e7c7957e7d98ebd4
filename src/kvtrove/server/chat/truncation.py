"""Making a conversation fit by leaving out whole turns from its middle.

    system | turn 0 | turn 1 | turn 2 | ... | newest turn          a turn: a user message and all that answers it
    keep   | drop  ...         | keep .................. |

The cut moves in steps of STRIDE turns: while a conversation grows, the prompt then begins alike for several requests
in a row, and the prefix cache keeps serving it. A cut that moved with every turn would leave it nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def cuts(messages: Sequence[Message]) -> list[list[int]]:
    """What may be dropped, in growing order: indices of the messages of the first STRIDE, 2 STRIDE, ... turns."""
    groups = turns(messages)
    counts = [*range(STRIDE, len(groups) - 1, STRIDE), max(0, len(groups) - 1)]
    return [[index for group in groups[:count] for index in group] for count in counts if count]


def smallest_cut(options: Sequence[list[int]], fits: Callable[[list[int]], bool]) -> list[int] | None:
    """The first of `options` that fits (if one does, all after it do), or None. Asks `fits` about log2 of them."""
    low, high = 0, len(options)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(options[middle]) else (middle + 1, high)
    return options[low] if low < len(options) else None
