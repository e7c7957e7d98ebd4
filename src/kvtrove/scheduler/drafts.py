"""Drafts without a draft model: what followed the last time that a sequence looked as it does now.

A draft is checked in the step that it is computed in: the model draws a token at every position, as it would without
drafts, and a draft is right when it is the token drawn. So drafts change how many tokens a step yields, never which.

    n-gram (prompt lookup, arXiv 2304.04487 and github.com/apoorvumang/prompt-lookup-decoding): prompt and output are
        searched for the longest earlier occurrence of their own end.
    suffix (after SuffixDecoding, arXiv 2411.04975): recent answers of the same tenant are searched, too.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvtrove.kv.manager import KVCacheManager
from kvtrove.scheduler.output import NO_TOKENS, SampledToken, ScheduledSequence, SequenceResult
from kvtrove.scheduler.sequence import Sequence

CANDIDATES = 64  # latest occurrences that are compared in full
KEPT_TOKENS = 1 << 16  # of a tenant's answers
KEPT_TENANTS = 64
HOPE = 1.7  # tokens that a sequence with drafts draws in a step, about
PRIOR_WEIGHT, MEMORY = 3.0, 0.95  # tokens that a match counts as; how much of what was learned stays, from step to step
BETWEEN = -1  # stands between answers

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class DraftRules:
    """most: of a sequence in a step. longest, least: tokens that can and must match. answers: search these, too.

    row_cost: what another row adds to a step, in steps of one row, which are bound by reading the weights.
    """

    most: int = 12
    longest: int = 32
    least: int = 2
    answers: bool = False
    row_cost: float = 0.03


@dataclass(slots=True)
class DraftStats:
    """Since the start. num_drafts: drafts of one or more tokens. accepted_per_pos: by place in the draft."""

    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    accepted_per_pos: list[int] = field(default_factory=list)


class Answers:
    """The latest tokens that each tenant (salt) was answered with. Bounded: KEPT_TENANTS times KEPT_TOKENS, twice."""

    def __init__(self) -> None:
        self._of: dict[bytes, array[int]] = {}  # the tenant that was answered last comes last

    def add(self, salt: bytes, answer: array[int]) -> None:
        kept = self._of.pop(salt, None)
        kept = array("i") if kept is None else kept
        kept.extend(answer[-KEPT_TOKENS:])
        kept.append(BETWEEN)
        if len(kept) > 2 * KEPT_TOKENS:
            del kept[:-KEPT_TOKENS]
        self._of[salt] = kept
        if len(self._of) > KEPT_TENANTS:
            del self._of[next(iter(self._of))]

    def of(self, salt: bytes) -> array[int]:
        return self._of.get(salt, NO_TOKENS)


class Drafter:
    """Proposes drafts for decoding sequences and learns from what became of them."""

    def __init__(self, rules: DraftRules) -> None:
        self.rules = rules
        self.answers = Answers()
        self.stats = DraftStats(accepted_per_pos=[0] * rules.most)

    def plan(self, decodes: Seq[Sequence], num_tokens: int, room: int, kv: KVCacheManager) -> dict[int, array[int]]:
        """Drafts by sequence id, their blocks allocated. num_tokens: of the step without them; room: how many fit.

        A draft is worth its place while its chance to be right is greater than the time that its row takes, in tokens
        drawn in that time: nearly nothing beside one sequence where rows are cheap, all of it beside a prompt.
        """
        bar = HOPE * self.rules.row_cost * num_tokens / (1 + self.rules.row_cost * (num_tokens - 1))
        drafts: dict[int, array[int]] = {}
        for seq in decodes:
            if seq.num_output == 0:
                continue  # its first draw may fork
            most = min(self.rules.most, room, _room_in_block(seq, kv.block_size), seq.request.max_len - len(seq) - 1)
            most = min(most, seq.until_pause - 1)
            if bar >= 1 or most < 1 or seq.request.params.speculation is False or seq.request.beam:
                continue
            seq.draft_tried *= MEMORY
            seq.draft_right *= MEMORY
            found = self._propose(seq, bar, most)
            if found and kv.allocate(seq.kv, 1 + len(found)) and kv.states.hold(seq.kv):
                drafts[seq.id] = found
                room -= len(found)
        return drafts

    def accept(self, seq: Sequence, done: ScheduledSequence, result: SequenceResult) -> list[SampledToken]:
        """Append the drafts that were right, none of which can end the sequence; returns what was drawn after them."""
        if not result.samples:
            return []
        self.learn(seq, len(done.verify), len(result.accepted))
        *right, last = *result.samples, *result.accepted
        seq.sums = []
        for token in right:
            seq.append(token)
        return [last]

    def learn(self, seq: Sequence, num_drafts: int, num_accepted: int) -> None:
        """So many of the drafts of a step were right; the one after them was wrong, those behind it were not tried."""
        seq.draft_right += num_accepted
        seq.draft_tried += min(num_drafts, num_accepted + 1)
        metrics, stats = seq.request.metrics, self.stats
        metrics.num_draft_tokens += num_drafts
        metrics.num_accepted_tokens += num_accepted
        stats.num_drafts += 1
        stats.num_draft_tokens += num_drafts
        stats.num_accepted_tokens += num_accepted
        for place in range(num_accepted):
            stats.accepted_per_pos[place] += 1

    def finished(self, seq: Sequence) -> None:
        """An answer is complete: others of the same tenant may be like it."""
        if self.rules.answers and not seq.request.beam:
            self.answers.add(seq.request.salt, seq.output)

    def _propose(self, seq: Sequence, bar: float, most: int) -> array[int]:
        tokens = self._view(seq.tokens)
        tail = tokens[-self.rules.longest :]
        at, length = longest_match(tokens[:-1], tail, self.rules.least)
        source = tokens[at:]
        if self.rules.answers:
            kept = self._view(self.answers.of(seq.request.salt))
            there, longer = longest_match(kept[:-1], tail, max(self.rules.least, length + 1))
            if longer:
                source, length = kept[there : there + most], longer
        count = min(most, self._worth(seq, length, bar)) if length else 0
        if not count:
            return NO_TOKENS
        draft = np.resize(source, count)  # what repeats itself up to its very end goes on to do so
        ends = np.flatnonzero((draft == BETWEEN) | np.isin(draft, [*seq.request.end_token_ids]))
        return array("i", draft[: ends[0] if len(ends) else count].tolist())

    @staticmethod
    def _view(tokens: array[int]) -> Ids:
        """To be gone before `tokens` grows again."""
        return np.frombuffer(tokens, dtype=np.int32) if tokens else np.empty(0, dtype=np.int32)

    @staticmethod
    def _worth(seq: Sequence, length: int, bar: float) -> int:
        """How many drafts behind a match of `length` tokens have a chance of at least `bar` each."""
        prior = length / (length + 2)
        chance = (seq.draft_right + PRIOR_WEIGHT * prior) / (seq.draft_tried + PRIOR_WEIGHT)
        return int(math.log(bar) / math.log(chance)) if chance < 1 else 0


def longest_match(text: Ids, tail: Ids, least: int) -> tuple[int, int]:
    """(place behind it, length) of the longest occurrence in `text` of the end of `tail`; the latest of several.

    Length 0 when none has `least` tokens. One look at every token, then at CANDIDATES places in full.
    """
    if not least <= min(len(text), len(tail)):
        return 0, 0
    ends = np.flatnonzero(text[least - 1 :] == tail[-1]) + least
    for back in range(2, least + 1):
        ends = ends[text[ends - back] == tail[-back]]
    if not len(ends):
        return 0, 0
    ends = ends[-CANDIDATES:]
    before = ends[:, None] - 1 - np.arange(len(tail))
    differs = (text[np.maximum(before, 0)] != tail[::-1]) | (before < 0)
    lengths = np.where(differs.any(1), differs.argmax(1), len(tail))
    best = len(ends) - 1 - int(lengths[::-1].argmax())
    return int(ends[best]), int(lengths[best])


def _room_in_block(seq: Sequence, block_size: int) -> int:
    """Drafts after the next token that leave the last slot of its block to a token that was drawn: formats that seal in
    the step that fills a block must not seal what may be wrong."""
    return block_size - 1 - (len(seq) - seq.kv.dropped) % block_size
