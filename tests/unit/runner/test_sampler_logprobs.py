"""Reported log-probabilities: raw, exact in rank, in the order of likelihood."""

from __future__ import annotations

from array import array

import numpy as np
import pytest
import torch

from kvtrove.request import EngineError
from kvtrove.runner.sampler import Sampler, logprob_table
from tests.unit.runner.sampling import spec

V = 500


def logits_of(rows: int, ties: bool = False) -> torch.Tensor:
    x = torch.randn(rows, V, generator=torch.Generator().manual_seed(2)) * 4
    return x.round() if ties else x


def rank_by_hand(row: np.ndarray, token: int) -> int:
    return 1 + sum(1 for i, value in enumerate(row) if (-value, i) < (-row[token], token))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("top_k", [0, 1, 5, 200, V, V + 50])
def test_table_against_float64(top_k, ties):
    logits = logits_of(12, ties)
    targets = [(17 * n) % V for n in range(10)] + [int(logits[10].argmax()), int(logits[11].argmin())]
    tables = logprob_table(logits, targets, top_k, token_text=lambda i: f"<{i}>")
    for row, target, table in zip(logits.double(), targets, tables, strict=True):
        logprobs = row.log_softmax(-1)
        best = np.lexsort((np.arange(V), -row.numpy()))[:top_k].tolist()
        assert list(table) == [target, *[i for i in best if i != target]]
        for token, entry in table.items():
            assert entry.logprob == pytest.approx(float(logprobs[token]), abs=1e-5)
            assert entry.rank == rank_by_hand(row.numpy(), token)
            assert entry.decoded_token == f"<{token}>"


def test_targets_may_be_an_array_and_nothing_may_be_asked():
    logits = logits_of(3)
    assert logprob_table(logits, array("i", [1, 2, 3]), 2) == logprob_table(logits, [1, 2, 3], 2)
    assert logprob_table(logits[:0], array("i"), 2) == []
    assert all(entry.decoded_token is None for table in logprob_table(logits, [1, 2, 3], 2) for entry in table.values())


def test_sampled_tokens_carry_raw_logprobs_whatever_changed_the_choice():
    logits = logits_of(4)
    changed = {"temperature": 3.0, "top_k": 50, "logit_bias": {7: 30.0}, "repetition_penalty": 2.0, "prompt": [1, 2]}
    specs = [
        spec(logprobs=3, **changed),
        spec(temperature=0),
        spec(logprobs=0, streams=range(4), n=4),
        spec(logprobs=2, candidates=5, beam_width=2),
    ]
    rows = Sampler(V, "cpu").sample(logits, specs, str)
    raw = logits.double().log_softmax(-1)
    for row, tokens in zip(raw, rows, strict=True):
        for token in tokens:
            assert token.logprob == pytest.approx(float(row[token.token_id]), abs=1e-5)
    assert rows[0][0].token_id == 7
    assert list(rows[0][0].logprobs) == [7, *logits[0].topk(3).indices.tolist()]
    assert rows[0][0].logprobs[7].rank == rank_by_hand(logits[0].numpy(), 7)
    assert rows[1][0].logprobs is None
    assert [list(token.logprobs) for token in rows[2]] == [[token.token_id] for token in rows[2]]
    assert [token.logprobs[token.token_id].rank for token in rows[3]] == [1, 2, 3, 4, 5]
    assert all(set(token.logprobs) >= set(logits[3].topk(2).indices.tolist()) for token in rows[3])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_row_has_no_log_probabilities(value):
    logits = logits_of(3)
    logits[1, 4] = value
    with pytest.raises(EngineError, match="the model's logits are not finite"):
        logprob_table(logits, [0, 0, 6], 5)
