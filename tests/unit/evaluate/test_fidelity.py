"""Two caches read the same text: nothing differs where nothing can, and something where it must."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from kvtrove.evaluate.engines import Engines
from kvtrove.evaluate.fidelity import TeacherForced, TextSegment
from kvtrove.evaluate.settings import Settings
from tests.checkpoints import VOCAB, Checkpoints

TOKENS = [(7 * i * i + 3 * i) % VOCAB for i in range(70)]
WINDOW = 24
KV = ("fp32", "bf16", f"window={WINDOW}", "window=128", f"bf16+window={WINDOW}")


@pytest.fixture(scope="module")
def engines(tiny: Path) -> Engines:
    return Engines.start(Settings(str(tiny), caches=KV, context=80, lengths=(80,), chunk=16, block_size=8))


@pytest.fixture(scope="module")
def tiny(checkpoints: Checkpoints) -> Path:
    return checkpoints.get("llama")


@pytest.fixture(scope="module")
def found(engines: Engines) -> dict[str, dict[str, Any]]:
    return dict(TextSegment(0, TOKENS, engines.reference, chunk=16).run(engines.compared))


def test_every_token_but_the_first_is_predicted(found: dict[str, dict[str, Any]]) -> None:
    assert {len(one["kl"]) for one in found.values()} == {len(TOKENS) - 1}


@pytest.mark.parametrize("name", ["exact", "fp32", "window=128"])
def test_an_equal_cache_predicts_exactly_the_same(name: str, found: dict[str, dict[str, Any]]) -> None:
    assert found[name]["kl"] == [0.0] * (len(TOKENS) - 1)
    assert found[name]["same_top"] == len(TOKENS) - 1
    assert found[name]["nll"] == found["exact"]["nll"]


def test_a_window_changes_nothing_within_it_and_everything_beyond(found: dict[str, dict[str, Any]]) -> None:
    kl = found[f"window={WINDOW}"]["kl"]
    assert kl[:WINDOW] == [0.0] * WINDOW
    assert min(kl[WINDOW:]) > 1e-4
    assert found[f"window={WINDOW}"]["same_top"] < len(TOKENS) - 1


def test_rounding_costs_a_little_at_every_token(found: dict[str, dict[str, Any]]) -> None:
    kl = found["bf16"]["kl"]
    assert max(kl[:4]) > 0
    assert 0 < sum(kl) / len(kl) < 0.01 * sum(found[f"window={WINDOW}"]["kl"]) / len(kl)


def test_changes_add_up_when_they_are_joined(found: dict[str, dict[str, Any]]) -> None:
    both, window = found[f"bf16+window={WINDOW}"]["kl"], found[f"window={WINDOW}"]["kl"]
    assert both[:WINDOW] == found["bf16"]["kl"][:WINDOW]
    assert both[WINDOW:] == pytest.approx(window[WINDOW:], rel=0.2)
    assert both[WINDOW:] != window[WINDOW:]


def test_the_measures_are_their_definitions(engines: Engines, found: dict[str, dict[str, Any]]) -> None:
    """Once more, from logits that were computed in one chunk of everything."""
    name, last = f"window={WINDOW}", len(TOKENS) - 1
    with TeacherForced(engines.reference, TOKENS) as exact, TeacherForced(engines.compared[name], TOKENS) as other:
        p, q = (one.logits(last).double().softmax(-1) for one in (exact, other))
    kl = torch.nn.functional.kl_div(q.log(), p, reduction="none").sum(-1)
    assert found[name]["kl"] == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-6)
    assert found[name]["same_top"] == int((p.argmax(-1) == q.argmax(-1)).sum())
    nll = -sum(math.log(float(q[i, token])) for i, token in enumerate(TOKENS[1:]))
    assert found[name]["nll"] == pytest.approx(nll, rel=1e-5)


def test_the_chunk_does_not_matter_and_nothing_stays_in_the_caches(
    engines: Engines, found: dict[str, dict[str, Any]]
) -> None:
    again = dict(TextSegment(0, TOKENS, engines.reference, chunk=7).run(engines.compared))
    for name, one in again.items():
        assert one["kl"] == pytest.approx(found[name]["kl"], rel=2e-2, abs=1e-6)
    for engine in (engines.reference, *engines.compared.values()):
        assert engine.kv.stats().used == 0


def test_all_engines_share_one_model(engines: Engines) -> None:
    assert {id(engine.runner.model) for engine in engines.compared.values()} == {id(engines.reference.runner.model)}


def test_the_whole_range_of_a_segment_is_known_by_its_tokens(engines: Engines) -> None:
    one = TextSegment(0, TOKENS, engines.reference, 16)
    assert one.key == TextSegment(0, TOKENS, engines.reference, 7).key
    assert one.key != TextSegment(0, [*TOKENS[:-1], 1], engines.reference, 16).key
