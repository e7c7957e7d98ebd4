"""Small rules of the scheduler, each a pure function."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq

from kvtrove.request import FinishReason
from kvtrove.scheduler.sequence import Request, Sequence


def share(budget: int, needs: Seq[int]) -> list[int]:
    """Split `budget` tokens over prefills so that a short prompt is never kept waiting by a long one.

    Max-min fairness (water filling): everyone gets an equal share, and what the small ones leave is shared again.
    Earlier ones get the remainder: share(10, [2, 100, 100]) == [2, 4, 4], share(5, [9, 9]) == [3, 2].
    """
    given = [0] * len(needs)
    for done, i in enumerate(sorted(range(len(needs)), key=needs.__getitem__)):
        given[i] = min(needs[i], -(-budget // (len(needs) - done)))
        budget -= given[i]
    return given


def end_of(seq: Sequence) -> tuple[FinishReason, int | str | None] | None:
    """(finish reason, stop reason) after the last token was appended, or None to go on.

    As in vLLM, a stop token that the request named is the stop reason; the model's own end token is None. An output
    that has left its grammar ends with an error, whatever its last token is.
    """
    if seq.guide is not None and (problem := seq.guide.problem):
        return "error", problem
    request, params, last = seq.request, seq.request.params, seq.tokens[-1]
    if last in request.end_token_ids and seq.num_output >= params.min_tokens:
        return "stop", last if last in (params.stop_token_ids or ()) else None
    if len(seq.tokens) >= request.max_len:
        return "length", None
    return None


def too_long(request: Request, usable: int, blocks: Callable[[int], int]) -> str:
    """Why a request that needs more than `usable` blocks is refused, and what would fit. blocks: by length."""
    low, high = 0, request.max_len
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if blocks(middle) <= usable else (low, middle - 1)
    prompt, beams = len(request.prompt), f" in {request.params.beam_width} beams" if request.beam else ""
    advice = f"lower max_tokens to {low - prompt}" if low > prompt else f"shorten the prompt to under {low} tokens"
    return (
        f"{prompt} prompt + {request.max_len - prompt} new tokens{beams} need {blocks(request.max_len)} blocks of the "
        f"KV cache, which has {usable} (at most {low} tokens): {advice}, or give the cache more memory"
    )
