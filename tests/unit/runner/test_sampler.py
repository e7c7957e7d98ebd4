"""Which token is taken: greedy, beams, streams, contradicting rules, broken logits, and rows that stay alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvtrove.request import RequestError
from kvtrove.runner.logprobs import undrawable
from kvtrove.runner.sampler import Sampler
from tests.unit.runner.sampling import sample, spec

NAN, INF = float("nan"), float("inf")
V = 700


def logits_of(rows: int, seed: int = 0, size: int = V) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 3


def mixed_specs() -> list:
    """32 rows that go every way through the sampler."""
    choices = random.Random(5)
    ids = lambda n: [choices.randrange(V) for _ in range(n)]  # noqa: E731
    specs = []
    for n in range(32):
        options = {
            "temperature": choices.choice([0.0, 0.3, 1.0, 1.7]),
            "top_k": choices.choice([0, 0, 1, 5, 40, 300]),
            "top_p": choices.choice([1.0, 1.0, 0.1, 0.9, 0.999]),
            "min_p": choices.choice([0.0, 0.0, 0.05, 0.3]),
            "repetition_penalty": choices.choice([1.0, 1.0, 1.3, 0.7]),
            "presence_penalty": choices.choice([0.0, 0.5]),
            "frequency_penalty": choices.choice([0.0, -0.4]),
            "logit_bias": choices.choice([None, {i: choices.uniform(-5, 5) for i in ids(4)}]),
            "allowed_token_ids": choices.choice([None, None, ids(20)]),
        }
        history = {"prompt": ids(12), "output": ids(n), "banned": ids(choices.choice([0, 3])), "position": n}
        streams = choices.choice([(0,), (2,), (0, 1, 2, 3)])
        specs.append(spec(seed=n * 11, streams=streams, **history, **options))
    specs[9] = spec(candidates=8, banned=(3, 4), beam_width=4, position=2)
    return specs


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=9, max_size=9), min_size=1, max_size=6))
def test_greedy_takes_the_lowest_id_of_the_likeliest(rows):
    expected = [[int(np.argmax(row))] for row in rows]
    assert sample(torch.tensor(rows), [spec(temperature=0)] * len(rows)) == expected
    biased = [spec(temperature=0, logit_bias={0: 0.0})] * len(rows)  # changes nothing, but leaves the fast path
    assert sample(torch.tensor(rows), biased) == expected


def test_greedy_streams_agree():
    [tokens] = sample(logits_of(1), [spec(temperature=0, streams=range(4), n=4)])
    assert len(tokens) == 4
    assert len(set(tokens)) == 1


@pytest.mark.parametrize("rounded", [False, True], ids=["float32", "ties of bfloat16"])
def test_a_row_draws_the_same_alone_and_among_31_others(rounded):
    specs, logits = mixed_specs(), logits_of(32)
    if rounded:
        logits = logits.bfloat16().float()
    together = sample(logits, specs)
    assert [sample(logits[i : i + 1], [specs[i]])[0] for i in range(32)] == together
    order = random.Random(1).sample(range(32), 32)
    assert sample(logits[order], [specs[i] for i in order]) == [together[i] for i in order]


def test_streams_draw_what_forks_of_them_would_draw():
    logits = logits_of(1)
    [together] = sample(logits, [spec(streams=range(6))])
    assert [sample(logits, [spec(streams=(n,))])[0][0] for n in range(6)] == together
    assert len(set(together)) > 1, "streams must differ from each other"


def test_seed_and_position_change_the_draw():
    logits = torch.zeros(1, V)
    drawn = {sample(logits, [spec(seed=a, position=b)])[0][0] for a in range(5) for b in range(5)}
    assert len(drawn) > 20


def test_the_input_is_not_modified():
    logits = logits_of(32)
    logits[0, 0], logits[1, 1] = NAN, INF
    before = logits.clone()
    sample(logits, mixed_specs())
    assert torch.equal(logits.view(torch.int32), before.view(torch.int32)), "bit by bit: NaN included"


def test_candidates_are_the_best_by_raw_logprob_without_banned_ones():
    logits = logits_of(2).bfloat16().float()
    banned = logits[0].topk(3).indices.tolist()
    specs = [spec(candidates=300, banned=banned, beam_width=150), spec(candidates=4, beam_width=2, temperature=0)]
    rows = Sampler(V, "cpu").sample(logits, specs)
    order = [t for t in np.lexsort((np.arange(V), -logits[0].numpy())).tolist() if t not in banned]
    assert [t.token_id for t in rows[0]] == order[:300]
    expected = logits[0].double().log_softmax(-1)[order[:300]]
    assert torch.allclose(torch.tensor([t.logprob for t in rows[0]]), expected.float(), atol=1e-5)
    assert len(rows[1]) == 4


def test_fewer_candidates_when_there_are_not_so_many():
    [tokens] = sample(torch.tensor([[0.0, 3.0, -INF, 1.0]]), [spec(candidates=8, banned=(3,), beam_width=4)])
    assert tokens == [1, 0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_stay_in_their_row(temperature):
    logits = logits_of(6)
    healthy = logits.clone()
    logits[1, 5] = NAN
    logits[2] = NAN
    logits[3, 9] = INF
    logits[4, [8, 11]], logits[4, 20] = INF, NAN
    logits[5] = -INF
    specs = [spec(temperature=temperature, streams=range(50), n=50) for _ in range(6)]
    assert sample(logits, specs) == [sample(healthy[:1], specs[:1])[0], [], [], [], [], []]
    assert "1 of 700 are NaN or infinite" in str(undrawable(logits[1]))
    assert "try --dtype bfloat16" in str(undrawable(logits[5]))


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}, {"repetition_penalty": 1.5}])
def test_broken_logits_harm_no_other_row_in_any_filter(options):
    logits = torch.full((4, V), NAN)
    logits[1, 3], logits[2], logits[3] = INF, -INF, torch.arange(V)
    specs = [spec(prompt=[3], streams=range(9), **options) for _ in range(4)]
    assert sample(logits, specs) == [[], [], [], *sample(logits[3:], specs[3:])]
    assert len(sample(logits, specs)[3]) == 9


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}, {"allowed_token_ids": [1, 2]}])
@pytest.mark.parametrize("size", [1e30, 3e38])
@pytest.mark.parametrize("temperature", [1e-5, 1.0, 100.0])
def test_the_largest_numbers_within_bounds_overflow_nowhere(options, size, temperature):
    """Each bound of `BOUNDS` and `BIAS` at its worst, on the largest finite logits that a model can give."""
    logits = torch.linspace(-size, size, V, dtype=torch.float64).float().repeat(4, 1)
    common = {"temperature": temperature, "prompt": range(V), "output": [1, 2] * 500, "banned": (0,), **options}
    specs = [
        spec(repetition_penalty=0.01, logit_bias=dict.fromkeys(range(V), 100.0), **common),
        spec(repetition_penalty=100.0, logit_bias=dict.fromkeys(range(V), -100.0), **common),
        spec(presence_penalty=-2.0, frequency_penalty=-2.0, **common),
        spec(presence_penalty=2.0, frequency_penalty=2.0, **common),
    ]
    allowed = options.get("allowed_token_ids", range(1, V))
    assert all(len(row) == 1 and row[0] in allowed for row in sample(logits, specs))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rules_that_leave_nothing_draw_nothing_and_harm_no_other_row(temperature):
    logits = logits_of(3)
    contradiction = spec(temperature=temperature, allowed_token_ids=[4, 5], banned=(4, 5), streams=range(5))
    fine = spec(temperature=temperature, allowed_token_ids=[4, 5], banned=(4,))
    beams = spec(candidates=4, beam_width=2, banned=tuple(range(V)))
    assert sample(logits, [contradiction, fine, beams]) == [[], [5], []]
    assert isinstance(undrawable(logits[0]), RequestError)


def test_one_allowed_token_is_always_drawn():
    logits = logits_of(1)
    worst = int(logits[0].argmin())
    [tokens] = sample(logits, [spec(allowed_token_ids=[worst], top_k=50, top_p=0.9, streams=range(20))])
    assert set(tokens) == {worst}


def test_top_k_1_is_greedy_even_among_equals():
    assert sample(torch.tensor([[1.0, 2.0, 2.0, 2.0]]), [spec(top_k=1, streams=range(30))]) == [[1] * 30]


def test_shape_is_checked():
    with pytest.raises(ValueError, match=r"logits are \[1, 5\], expected \[1, 700\]"):
        Sampler(V, "cpu").sample(torch.zeros(1, 5), [spec()])


WEIGHTS = st.lists(
    st.sampled_from([0.0, 0.0, 1e-38, 1e-30, 1e-17, 2e-16, 1e-12, 0.1, 1.0]), min_size=1, max_size=30
).filter(any)


@given(WEIGHTS, st.sampled_from([1.0, 0.999]), st.integers(0, 2**40))
def test_no_token_of_weight_zero_is_ever_drawn(weights, top_p, seed):
    logits = torch.tensor([weights]).log()
    tokens = sample_of(len(weights), logits, spec(seed=seed, streams=range(8), top_p=top_p))
    assert all(weights[token] > 0 for token in tokens)


def sample_of(size: int, logits: torch.Tensor, s) -> list[int]:
    [row] = Sampler(size, "cpu").sample(logits, [s])
    return [token.token_id for token in row]
