"""What is drawn, against float64 arithmetic written out by hand, against chance, and against transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from kvtrove.kernels.draw import limit, race
from kvtrove.runner.draw import _draws, _limit, _race, best_of_all
from tests.unit.runner.sampling import adjusted_by_hand, chi_square, distribution, drawn_by_hand, sample, spec

DRAWS = 8_000
V = 600  # more than two blocks of tokens and a rest
HISTORY = {"prompt": [1, 5, 5, 90, 300], "output": [5, 7, 7, 7, 599, 0]}

FILTERS = {
    "none": {},
    "hot": {"temperature": 2.5},
    "cold": {"temperature": 0.2},
    "top_k": {"top_k": 7},
    "top_k beyond the first look": {"top_k": 400, "temperature": 3.0},
    "top_k of all": {"top_k": V},
    "top_p": {"top_p": 0.8},
    "top_p beyond the first look": {"top_p": 0.98, "temperature": 4.0},
    "tiny top_p": {"top_p": 1e-9},
    "min_p": {"min_p": 0.02},
    "min_p of 1": {"min_p": 1.0},
    "top_k, top_p": {"top_k": 30, "top_p": 0.7, "temperature": 1.4},
    "min_p, top_p": {"min_p": 0.05, "top_p": 0.95, "temperature": 1.4},
    "min_p, top_k, top_p": {"min_p": 0.01, "top_k": 60, "top_p": 0.9, "temperature": 1.4},
    "repetition": {"repetition_penalty": 1.6, **HISTORY},
    "repetition rewarded": {"repetition_penalty": 0.6, "top_p": 0.9, **HISTORY},
    "presence, frequency": {"presence_penalty": 1.2, "frequency_penalty": -0.5, "temperature": 1.5, **HISTORY},
    "bias": {"logit_bias": {3: 6.0, 4: -100.0, 599: 4.0}},
    "allowed": {"allowed_token_ids": [3, 4, 255, 256, 599]},
    "banned": {"banned": list(range(0, 600, 2)), "top_k": 20},
    "all": {
        "allowed_token_ids": list(range(0, 600, 3)),
        "logit_bias": {3: 2.0, 600 - 3: 3.0},
        "banned": [9, 300],
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
        "temperature": 1.3,
        "min_p": 0.005,
        "top_k": 90,
        "top_p": 0.97,
        **HISTORY,
    },
}


def row(seed: int = 3, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(1, V, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("name", FILTERS)
def test_draws_equal_float64_by_hand_and_follow_the_distribution(name):
    logits, s = row(), spec(streams=range(DRAWS), position=4, **FILTERS[name])
    [tokens] = sample(logits, [s])
    wide = logits[0].double().numpy()
    assert tokens[:300] == drawn_by_hand(wide, s)
    expected = distribution(wide, s)
    counts = np.bincount(tokens, minlength=V)
    assert not counts[expected == 0].any(), "a token outside the filter was drawn"
    assert chi_square(counts.astype(float), expected) < 5


def test_draws_over_positions_follow_the_distribution():
    logits = row().expand(200, V)
    counts = np.zeros(V)
    for first in range(0, 4000, 200):
        specs = [spec(position=first + n, top_p=0.9) for n in range(200)]
        counts += np.bincount([t for [t] in sample(logits, specs)], minlength=V)
    assert chi_square(counts, distribution(row()[0].double().numpy(), specs[0])) < 5


@pytest.mark.parametrize("name", ["top_p", "top_k", "min_p, top_k, top_p"])
def test_equal_logits_are_cut_at_the_lowest_ids(name):
    logits = (row() * 2).round() / 2
    s = spec(streams=range(2000), **FILTERS[name])
    assert sample(logits, [s])[0][:300] == drawn_by_hand(logits[0].double().numpy(), s)


def test_a_flat_row_under_top_p_keeps_the_right_number_of_tokens():
    [tokens] = sample(torch.zeros(1, 4000), [spec(top_p=0.75, streams=range(20_000))])
    assert max(tokens) == 2999
    assert len(set(tokens)) > 2900


HF_WARPERS = {
    "temperature": ({"temperature": 0.6}, [lambda: hf.TemperatureLogitsWarper(0.6)]),
    "top_k": ({"top_k": 9}, [lambda: hf.TopKLogitsWarper(9)]),
    "top_p": ({"top_p": 0.7}, [lambda: hf.TopPLogitsWarper(0.7)]),
    "min_p": ({"min_p": 0.03}, [lambda: hf.MinPLogitsWarper(0.03)]),
    "repetition_penalty": (
        {"repetition_penalty": 1.4, **HISTORY},
        [lambda: hf.RepetitionPenaltyLogitsProcessor(1.4)],
    ),
    "all": (
        {"repetition_penalty": 1.4, "temperature": 1.8, "min_p": 0.01, "top_k": 80, "top_p": 0.9, **HISTORY},
        [
            lambda: hf.RepetitionPenaltyLogitsProcessor(1.4),
            lambda: hf.TemperatureLogitsWarper(1.8),
            lambda: hf.MinPLogitsWarper(0.01),
            lambda: hf.TopKLogitsWarper(80),
            lambda: hf.TopPLogitsWarper(0.9),
        ],
    ),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", HF_WARPERS)
def test_the_distribution_is_that_of_transformers(name, seed):
    options, warpers = HF_WARPERS[name]
    logits, s = row(seed), spec(streams=range(300), **options)
    scores = logits.double()
    ids = torch.tensor([[*s.prompt, *s.output]])
    for warper in warpers:
        scores = warper()(ids, scores)
    theirs = scores.softmax(-1)[0].numpy()
    ours = distribution(logits[0].double().numpy(), s)
    assert ((theirs > 0) == (ours > 0)).all()
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-15)
    assert sample(logits, [s])[0][:300] == drawn_by_hand(logits[0].double().numpy(), s)


def test_greedy_follows_the_adjusted_logits():
    names = ["repetition", "presence, frequency", "bias", "allowed", "banned", "all"]
    logits = torch.cat([row(seed) for seed in range(len(names))])
    specs = [spec(**{**FILTERS[name], "temperature": 0.0}) for name in names]
    expected = [int(adjusted_by_hand(x.double().numpy(), s).argmax()) for x, s in zip(logits, specs, strict=True)]
    assert sample(logits, specs) == [[token] for token in expected]


def test_a_draw_changes_only_where_tokens_are_level():
    """Noise is a token's own: other logits moving by a rounding, or a filter letting losers in, leave a draw alone."""
    logits = row().expand(500, V)
    specs = [spec(position=n, temperature=1.5) for n in range(500)]
    free = sample(logits, specs)
    assert sample(logits * (1 + 2.0**-20), specs) == free
    for options in ({"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.01}):
        cut = sample(logits, [spec(position=n, temperature=1.5, **options) for n in range(500)])
        kept = set(np.flatnonzero(distribution(row()[0].double().numpy(), spec(temperature=1.5, **options))).tolist())
        assert [c for c, f in zip(cut, free, strict=True) if f[0] in kept] == [f for f in free if f[0] in kept]
        assert 0 < sum(f[0] in kept for f in free) < 500


@pytest.mark.parametrize("spread", [0.0, 1e-3, 2.0, 30.0])
def test_the_kernel_finds_the_winners_that_torch_finds(spread):
    scaled = row(spread=spread).expand(4, V).contiguous() - row(spread=spread).amax()
    scaled[1, ::2], scaled[2, 1:] = -np.inf, -np.inf
    draws = _draws([spec(streams=range(200), seed=s) for s in range(4)], scaled.device)
    expected = _race(scaled, scaled.exp(), *draws)
    assert torch.equal(best_of_all(scaled, scaled.exp(), *draws), expected)
    candidates, counts = race(scaled.exp(), *draws)
    assert all(e in c[:n] for e, c, n in zip(expected, candidates, counts, strict=True))


@pytest.mark.parametrize("spread", [0.0, 1e-3, 2.0, 30.0])
def test_the_kernel_leaves_the_tokens_that_torch_leaves(spread):
    """Equal log-weights, excluded tokens, and rows without a limit among them."""
    scaled = row(spread=spread).expand(8, V).contiguous() - row(spread=spread).amax()
    scaled[4:] = scaled[4:].mul(2).round() / 2
    scaled[::3, 1::2] = -np.inf
    top_k = torch.tensor([V, V, 1, 5, 70, 400, V, V])
    top_p = torch.tensor([1.0, 0.9, 1.0, 0.5, 0.9, 1.0, 1e-9, 0.999], dtype=torch.float64)
    found, expected = scaled.exp(), scaled.exp()
    limit(scaled, found, top_k, top_p)
    _limit(scaled, expected, top_k, top_p)
    assert torch.equal(found, expected)
    assert (found > 0).sum(-1)[[2, 6]].tolist() == [1, 1]
