"""Drafts: what is proposed, when it is worth it, and that no token ever changes for it."""

from __future__ import annotations

import random
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtrove.kv.retention import Full, SlidingWindow
from kvtrove.request import SamplingParams
from kvtrove.scheduler import drafts as drafts_module
from kvtrove.scheduler.drafts import Answers, Drafter, DraftRules, longest_match
from kvtrove.scheduler.output import SampledToken, accept
from kvtrove.scheduler.scheduler import SchedulerLimits
from tests.echo import EchoEngine, continuation, echo_spec

SMALL = st.lists(st.integers(0, 3), max_size=30)


def by_hand(text: list[int], tail: list[int], least: int) -> tuple[int, int]:
    found = (0, 0)
    for end in range(1, len(text) + 1):
        same = 0
        while same < min(end, len(tail)) and text[end - 1 - same] == tail[-1 - same]:
            same += 1
        if same >= max(least, found[1]):
            found = (end, same)
    return found


@given(SMALL, SMALL, st.integers(1, 4))
def test_the_longest_match_is_the_latest_of_the_longest(text, tail, least):
    ids = [np.array(x, dtype=np.int32) for x in (text, tail)]
    assert longest_match(*ids, least) == by_hand(text, tail, least)


def test_drafts_are_accepted_up_to_the_first_that_was_not_drawn():
    drawn = [SampledToken(t, 0.0) for t in (5, 6, 9, 8)]
    assert accept(array("i", [5, 6, 7]), drawn[0], drawn[1:]) == drawn[1:3]
    assert accept(array("i", [4, 6, 7]), drawn[0], drawn[1:]) == []
    assert accept(array("i", [5, 6, 9]), drawn[0], drawn[1:2]) == drawn[1:2], "nothing could be drawn behind it"


def test_answers_are_bounded_and_tenants_see_their_own(monkeypatch):
    monkeypatch.setattr(drafts_module, "KEPT_TOKENS", 10)
    monkeypatch.setattr(drafts_module, "KEPT_TENANTS", 2)
    answers = Answers()
    for n in range(50):
        answers.add(b"a", array("i", [n, n + 1, n + 2]))
        assert len(answers.of(b"a")) <= 20
    answers.add(b"b", array("i", [1]))
    assert 49 in answers.of(b"a")
    assert answers.of(b"b").tolist() == [1, -1]
    answers.add(b"c", array("i", [2]))
    assert not answers.of(b"a")


class Repeats:
    """A stand-in for what the echo model never does: it repeats itself. Right and wrong drafts come from an oracle."""

    def __init__(self, rng: random.Random, most: int) -> None:
        self.rng, self.most = rng, most
        self.rules = DraftRules(most)
        self.real = Drafter(self.rules)
        self.planned: list[tuple[int, int]] = []

    def __getattr__(self, name):
        return getattr(self.real, name)

    def accept(self, *args):
        return self.real.accept(*args)

    def plan(self, decodes, num_tokens, room, kv):
        self.real._propose = self.propose
        self.kv = kv
        found = self.real.plan(decodes, num_tokens, room, kv)
        assert sum(map(len, found.values())) <= max(0, room)
        for seq in decodes:
            if seq.id in found:
                last = len(seq) + len(found[seq.id]) - 1
                assert (last + 1) % kv.block_size, "a draft would fill a block"
        return found

    def propose(self, seq, bar, most):
        right = self.rng.randrange(most + 1)
        params = seq.request.params
        tokens = continuation(seq.tokens.tolist(), right, self.spec, 0)
        true = self.truth(seq, right) if params.n == 1 else tokens
        wrong = [self.rng.randrange(1000) for _ in range(most - right)]
        return array("i", [t for t in [*true, *wrong] if t != 7])

    def truth(self, seq, count):
        whole = continuation(seq.request.prompt.tolist(), seq.num_output + count, self.spec)
        return whole[seq.num_output :]


@pytest.mark.parametrize("rules", [(Full(),), (Full(), SlidingWindow(9))], ids=["full", "window"])
@pytest.mark.parametrize("seed", range(6))
def test_any_prefix_of_drafts_may_be_right(rules, seed):
    """Random drafts, right up to a random place: tokens are those of one by one, and the books stay right (check 2)."""
    rng = random.Random(seed)
    spec = echo_spec(4, *rules)
    engine = EchoEngine(spec, 60, SchedulerLimits(6, 24, 2))
    drafter = engine.scheduler.drafter = Repeats(rng, 9)
    drafter.spec = spec
    expected = {}
    for n in range(9):
        prompt = [rng.randrange(8, 1000) for _ in range(rng.randrange(1, 30))]
        params = SamplingParams(max_tokens=rng.randrange(1, 40), n=rng.choice([1, 1, 2]), logprobs=0)
        engine.add(f"r{n}", prompt, params, salt=rng.choice("ab"))
        expected[f"r{n}"] = [continuation(prompt, params.max_tokens, spec, stream) for stream in range(params.n)]
        for _ in range(rng.randrange(4)):
            engine.step()
    engine.run()
    assert {name: engine.outputs(name) for name in expected} == expected
    stats = drafter.real.stats
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens
    assert sum(stats.accepted_per_pos) == stats.num_accepted_tokens
    assert engine.kv.num_free_blocks == 60
    done = [engine.requests[name] for name in expected]
    assert sum(r.metrics.num_accepted_tokens for r in done) == stats.num_accepted_tokens
    total = sum(len(tokens) for outputs in expected.values() for tokens in outputs)
    assert engine.scheduler.stats().num_generation_tokens == total


def sequence(tokens, **options):
    engine = EchoEngine(echo_spec(32), 100)
    return added(engine, "r", tokens, SamplingParams(max_tokens=200, **options)), engine


def added(engine, name, tokens, params, salt="t"):
    """A sequence of these tokens, the last of which is its first output."""
    request = engine.add(name, tokens[:-1], params, max_len=1000, salt=salt)
    request.sequences[0].tokens.append(tokens[-1])
    return request.sequences[0]


def test_a_sequence_that_repeats_itself_is_continued():
    seq, engine = sequence([1, 2, 3, 4, 5, 6, 1, 2, 3])
    [draft] = Drafter(DraftRules(most=5)).plan([seq], 1, 100, engine.kv).values()
    assert draft[:2].tolist() == [4, 5]
    seq, engine = sequence([8, 9] * 10)
    [draft] = Drafter(DraftRules(most=5)).plan([seq], 1, 100, engine.kv).values()
    assert draft.tolist() == [8, 9, 8, 9, 8]


def test_no_drafts_where_they_are_not_worth_it():
    seq, engine = sequence([8, 9] * 10)
    drafter = Drafter(DraftRules(row_cost=0.14))
    assert not drafter.plan([seq], 2000, 100, engine.kv), "beside a prompt every row costs its full time"
    assert not drafter.plan([seq], 1, 0, engine.kv), "no budget is left"
    for _ in range(20):
        drafter.learn(seq, 5, 0)
    assert not drafter.plan([seq], 1, 100, engine.kv), "none was right lately"
    for _ in range(200):
        last = drafter.plan([seq], 1, 100, engine.kv)
    assert last, "what was learned fades"
    cheap = Drafter(DraftRules(row_cost=0.01))
    for _ in range(20):
        cheap.learn(seq, 5, 0)
    assert cheap.plan([seq], 1, 100, engine.kv), "a row that costs nothing may be wrong nine times of ten"
    off, engine = sequence([8, 9] * 10, speculation=False)
    assert not drafter.plan([off], 1, 100, engine.kv)


def test_drafts_stop_before_an_end_token_and_the_longest_output():
    seq, engine = sequence([5, 6, 1, 2, 3, 7, 4, 5, 6, 1, 2])
    [draft] = Drafter(DraftRules()).plan([seq], 1, 100, engine.kv).values()
    assert draft.tolist() == [3]
    short = added(engine, "s", [8, 9] * 10, SamplingParams(max_tokens=4))
    [draft] = Drafter(DraftRules()).plan([short], 1, 100, engine.kv).values()
    assert len(draft) == 2, "with the token before them and the one drawn after them they are four"


def test_recent_answers_of_the_same_tenant_are_drafts_of_the_suffix_method():
    first, engine = sequence([1, 2, 3])
    first.tokens.extend([11, 12, 13, 14, 15])
    drafter = Drafter(DraftRules(answers=True))
    drafter.finished(first)
    same = added(engine, "same", [5, 11, 12, 13], SamplingParams(max_tokens=50))
    other = added(engine, "other", [5, 11, 12, 13], SamplingParams(max_tokens=50), salt="u")
    [draft] = drafter.plan([same, other], 2, 100, engine.kv).items()
    assert draft == (same.id, array("i", [14, 15]))
