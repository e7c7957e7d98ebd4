"""Beam search: which continuations of the live beams survive a step. The scheduler forks and frees accordingly."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from kvtrove.request import FinishReason
from kvtrove.scheduler.output import SampledToken
from kvtrove.scheduler.sequence import Request, Sequence


@dataclass(frozen=True, slots=True)
class Continuation:
    """One token after one beam."""

    parent: Sequence
    token: SampledToken

    @property
    def cumulative_logprob(self) -> float:
        return self.parent.cumulative_logprob + self.token.logprob


def advance(request: Request, candidates: dict[int, list[SampledToken]]) -> list[list[Continuation]]:
    """The survivors of a step, grouped by parent; none when the search is over. Ended ones join `request.completed`.

    candidates: live sequence id -> its 2 x beam_width likeliest tokens, so that enough stay open when the others end.
    """
    survivors, ended = _select(request, candidates)
    if request.sequences[0].num_output + 1 >= request.max_len - len(request.prompt):
        ended, survivors = ended + survivors, []
    request.completed.extend(map(_hypothesis, ended))
    if _settled(request, survivors):
        return []
    families: dict[int, list[Continuation]] = {}
    for continuation in survivors:
        families.setdefault(continuation.parent.id, []).append(continuation)
    return list(families.values())


def winners(request: Request) -> list[Sequence]:
    """The best `n` completed hypotheses, best first."""
    best = sorted(request.completed, key=_score_of, reverse=True)[: request.params.n]
    for index, seq in enumerate(best):
        seq.index = index
    return best


def score(cumulative_logprob: float, num_output: int, length_penalty: float) -> float:
    """Rank of a hypothesis: the mean log-probability for length_penalty 1, the sum for 0 (as in Hugging Face)."""
    divisor: float = max(1, num_output) ** length_penalty
    return cumulative_logprob / divisor


def _select(
    request: Request, candidates: dict[int, list[SampledToken]]
) -> tuple[list[Continuation], list[Continuation]]:
    """The best `beam_width` open continuations, and the ending ones ranked above the last of them."""
    live = {s.id: s for s in request.unfinished}
    every = [Continuation(live[seq_id], token) for seq_id, tokens in candidates.items() for token in tokens]
    survivors: list[Continuation] = []
    ended: list[Continuation] = []
    for continuation in sorted(every, key=lambda c: -c.cumulative_logprob):
        if len(survivors) == request.params.beam_width:
            break
        ends = continuation.token.token_id in request.end_token_ids
        (ended if ends else survivors).append(continuation)
    return survivors, ended


def _settled(request: Request, survivors: list[Continuation]) -> bool:
    """Whether no live beam can still beat the `beam_width` best hypotheses (Hugging Face's early_stopping="never").

    Log-probabilities only fall, so a beam's score is bounded by its present sum over the most favourable length.
    """
    width, penalty = request.params.beam_width, request.params.length_penalty
    if not survivors:
        return True
    if len(request.completed) < width:
        return False
    worst = sorted(map(_score_of, request.completed), reverse=True)[width - 1]
    best = survivors[0]
    length = request.max_len - len(request.prompt) if penalty > 0 else best.parent.num_output + 1
    return score(best.cumulative_logprob, length, penalty) <= worst


def _score_of(seq: Sequence) -> float:
    return score(seq.cumulative_logprob, seq.num_output, seq.request.params.length_penalty)


def _hypothesis(c: Continuation) -> Sequence:
    """A finished copy of parent + token that holds nothing of the cache."""
    parent, request = c.parent, c.parent.request
    copy = Sequence(parent.id, request, 0, array("i", parent.tokens), parent.kv)
    copy.inherit(parent)
    copy.append(c.token)
    problem = None if copy.guide is None else copy.guide.problem
    reason: FinishReason = "error" if problem else "stop" if c.token.token_id in request.end_token_ids else "length"
    copy.finish(reason, problem)
    return copy
