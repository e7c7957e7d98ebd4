"""Rows whose grammar allows only some tokens: the others are never drawn, and other rows notice nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvtrove.scheduler.output import SampleSpec
from tests.unit.runner.sampling import sample, spec


def mask(allowed: set[int], vocab: int) -> NDArray[np.int32]:
    bits = np.zeros(-(-vocab // 32) * 32, dtype=np.uint8)
    bits[list(allowed)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def guided(allowed: set[int], vocab: int, **params: object) -> SampleSpec:
    return replace(spec(**params), allowed=mask(allowed, vocab))  # type: ignore[arg-type]


@given(st.integers(1, 100), st.data())
def test_only_allowed_tokens_are_drawn(vocab: int, data: st.DataObject) -> None:
    allowed = data.draw(st.sets(st.integers(0, vocab - 1), min_size=1))
    seed, temperature = data.draw(st.integers(0, 2**32)), data.draw(st.sampled_from([0.0, 1.0, 5.0]))
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed))
    [[token]] = sample(logits, [guided(allowed, vocab, seed=seed, temperature=temperature)])
    assert token in allowed
    if temperature == 0.0:
        assert token == max(allowed, key=lambda t: (logits[0, t].item(), -t))


@pytest.mark.parametrize("params", [{"top_k": 2}, {"top_p": 0.1}, {"min_p": 0.9}, {"logit_bias": {5: 50.0}}])
def test_filters_work_on_what_is_allowed(params: dict[str, object]) -> None:
    """The likeliest tokens are forbidden: a filter that looked at them would leave nothing."""
    logits = torch.arange(40.0).repeat(20, 1)
    rows = [guided({1, 2, 3}, 40, seed=seed, **params) for seed in range(20)]
    assert {token for [token] in sample(logits, rows)} <= {1, 2, 3}


def test_other_rows_draw_as_without_it() -> None:
    logits = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    plain = [spec(seed=i) for i in range(4)]
    alone = sample(logits, plain)
    assert sample(logits, [guided({7}, 64, seed=0), *plain[1:]])[1:] == alone[1:]


def test_all_streams_of_a_row_obey() -> None:
    logits = torch.randn(1, 64, generator=torch.Generator().manual_seed(1))
    [tokens] = sample(logits, [guided({3, 9, 33}, 64, streams=(0, 1, 2, 3, 4, 5))])
    assert len(tokens) == 6
    assert set(tokens) <= {3, 9, 33}


def test_beams_take_allowed_candidates_only() -> None:
    logits = torch.arange(64.0).view(1, 64)
    [tokens] = sample(logits, [guided({3, 9, 33}, 64, candidates=4)])
    assert tokens == [33, 9, 3]


def test_a_vocabulary_that_is_no_multiple_of_32() -> None:
    logits = torch.zeros(1, 33)
    assert sample(logits, [guided({32}, 33)]) == [[32]]


def test_a_mask_shorter_than_the_vocabulary_forbids_the_rest() -> None:
    logits = torch.arange(70.0).view(1, 70)
    assert sample(logits, [replace(spec(temperature=0.0), allowed=mask({5}, 32))]) == [[5]]
