"""Beam search against a plain loop that keeps whole token lists."""

from __future__ import annotations

import pytest

from kvtrove.kv.retention import Full, SlidingWindow
from kvtrove.request import SamplingParams
from kvtrove.scheduler.beam import score
from kvtrove.scheduler.scheduler import SchedulerLimits
from tests.echo import VOCAB, EchoEngine, answer, candidate_logprob, echo_spec, visible

SPECS = [echo_spec(4, Full()), echo_spec(4, Full(), SlidingWindow(6))]


def beams_from_scratch(prompt, spec, width, steps, penalty, ends):
    """(tokens, score) of all hypotheses, best first; the echo model's candidates as `EchoModel` makes them."""
    rules = [layer.retention for layer in spec.layers]
    live, done = [([], 0.0)], []
    for position in range(steps):
        options = []
        for tokens, total in live:
            seen = visible([*prompt, *tokens], rules)
            for token in dict.fromkeys(answer(seen, rank, position) for rank in range(2 * width)):
                options.append(([*tokens, token], total + candidate_logprob(token)))
        options.sort(key=lambda option: -option[1])
        live = []
        for tokens, total in options:
            if len(live) == width:
                break
            (done if tokens[-1] in ends else live).append((tokens, total))
    done += live
    return sorted(((t, score(total, len(t), penalty)) for t, total in done), key=lambda h: -h[1])


@pytest.mark.parametrize("spec", SPECS, ids=["full", "hybrid"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(("width", "room"), [(2, 3), (4, 3), (4, 1)])
def test_beams_equal_a_loop_over_whole_lists(spec, penalty, width, room):
    """With room for one request's worst case, two of them preempt each other's beams, which are computed again."""
    prompt, steps = list(range(13)), 9
    blocks = room * width * spec.blocks_for(13 + 1 + steps, 32)
    ends = set(range(0, VOCAB, 9)) - set(prompt)
    engine = EchoEngine(spec, blocks, SchedulerLimits(8, 32))
    params = SamplingParams(
        n=width, beam_width=width, max_tokens=steps, length_penalty=penalty, stop_token_ids=sorted(ends), logprobs=0
    )
    engine.add("a", prompt, params)
    engine.add("b", [*prompt, 900], params)
    engine.run()
    for name, its_prompt in (("a", prompt), ("b", [*prompt, 900])):
        hypotheses = beams_from_scratch(its_prompt, spec, width, steps, penalty, ends | {7})
        assert engine.outputs(name) == [tokens for tokens, _ in hypotheses[:width]]
        for seq, (tokens, _) in zip(engine.requests[name].sequences, hypotheses, strict=False):
            assert seq.finish_reason == ("stop" if tokens[-1] in ends else "length")
    assert engine.kv.num_free_blocks == engine.kv.num_blocks
    assert engine.kv.check() == []


def test_only_open_tails_are_copied():
    engine = EchoEngine(SPECS[0], 200, SchedulerLimits(8, 64))
    engine.add("a", range(64), SamplingParams(beam_width=4, max_tokens=8))
    engine.step()
    used = engine.kv.num_blocks - engine.kv.num_free_blocks
    assert used == 64 // 4  # four beams on sixteen shared sealed blocks: nothing to copy yet
    engine.run()
    assert engine.kv.num_free_blocks == engine.kv.num_blocks


def test_aborting_a_beam_search_frees_every_beam():
    engine = EchoEngine(SPECS[0], 80, SchedulerLimits(8, 64))
    engine.add("a", range(30), SamplingParams(beam_width=4, max_tokens=20))
    for _ in range(5):
        engine.step()
    engine.scheduler.abort("a")
    assert engine.kv.num_free_blocks == engine.kv.num_blocks
    assert not engine.scheduler.has_unfinished
