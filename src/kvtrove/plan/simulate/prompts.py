"""Block ids of a trace -> token ids, so that prompts share exactly the blocks that the trace says they share."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from kvtrove.plan.traces.request import Trace, TraceRequest


class Prompts:
    """A block of the trace becomes `block_size` times its number; what belongs to no block is numbered by its request.

        ids 7, 9 of 8-token blocks      prompt | 7 7 7 7 7 7 7 7 | 9 9 9 9 9 9 9 9 | -3 -3 -3      answer | -4 -4 ...

    Token ids never reach a model, so they may be negative; two requests never have the same negative id.
    """

    def __init__(self, trace: Trace) -> None:
        self._block_size = trace.block_size

    def tokens(self, index: int, request: TraceRequest) -> array[int]:
        """int32 token ids of request number `index`, as long as its prompt."""
        tokens = array("i")
        for block in request.blocks:
            tokens.extend(array("i", (block,)) * self._block_size)
        del tokens[request.prompt_tokens :]
        missing = request.prompt_tokens - len(tokens)
        tokens.extend(array("i", (-2 * index - 1,)) * missing)
        return tokens

    @staticmethod
    def answer(index: int) -> int:
        """The token that request number `index` generates over and over."""
        return -2 * index - 2


def sessions(trace: Trace) -> Iterator[list[int]]:
    """Indices of each session's requests in order; a request without a session is one of its own."""
    found: dict[str, list[int]] = {}
    for index, request in enumerate(trace.requests):
        if request.session is None:
            found[f" {index}"] = [index]
        else:
            found.setdefault(request.session, []).append(index)
    yield from found.values()
