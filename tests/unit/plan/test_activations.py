"""The planned peak of a step against the real decoder, attention and sampler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvtrove.attention import reference, tiles
from kvtrove.kernels import rows
from kvtrove.models.precision import Precision
from kvtrove.models.spec import ModelSpec, MoESpec, RopeSpec
from kvtrove.plan import activations
from kvtrove.plan.activations import StepLimits, activation_bytes
from kvtrove.plan.model import from_spec
from kvtrove.request import SamplingParams
from kvtrove.runner import draw, ranking
from tests.specs import layer_spec, numbered
from tests.unit.plan.peak import Shape, measured_peak

BF16 = Precision.plain("bfloat16")
GREEDY = SamplingParams(temperature=0.0)
RANKED = SamplingParams(temperature=0.9, top_p=0.9, repetition_penalty=1.1)


def model(**changes: Any) -> ModelSpec:
    """A small decoder; `heads`, `kv_heads`, `dim`, `window` and `moe` shape its two layers."""
    shape = {"heads": 8, "kv_heads": 2, "dim": 32, "window": None, "moe": None}
    heads, kv_heads, dim, window, moe = (changes.pop(key, usual) for key, usual in shape.items())
    layer = layer_spec(kv_heads, dim, RopeSpec(1e4, dim, max_position=1 << 16), window, moe=moe)
    base = ModelSpec(
        family="llama",
        architecture="LlamaForCausalLM",
        vocab_size=500,
        hidden_size=256,
        intermediate_size=704,
        num_heads=heads,
        layers=numbered(layer, layer),
        max_position=1 << 16,
        norm_eps=1e-5,
        activation="silu",
        dtype="bfloat16",
        query_scale=dim**-0.5,
    )
    return replace(base, **changes)


# name -> (model, tokens cached and new per sequence, how tokens are drawn, planned / measured at most)
CASES: dict[str, tuple[ModelSpec, Shape, SamplingParams, float]] = {
    "prompt": (model(), [(0, 512)], GREEDY, 1.1),
    "prompt after 2k": (model(), [(1536, 512)], GREEDY, 1.05),
    "prompt after 16k": (model(), [(16_000, 384)], GREEDY, 1.05),
    "prompt in float32": (model(dtype="float32"), [(3584, 512)], GREEDY, 1.05),
    "many heads": (model(heads=32), [(0, 512)], GREEDY, 1.2),
    "every head its own keys": (model(kv_heads=8), [(512, 512)], GREEDY, 1.2),
    "sliding window": (model(window=512), [(4096, 512)], GREEDY, 1.2),
    "decodes": (model(), [(511, 1)] * 64, RANKED, 1.1),
    "decodes with long contexts": (model(), [(4095, 1)] * 8, RANKED, 1.1),
    "two very long contexts": (model(), [(20_000, 1)] * 2, RANKED, 1.1),
    "wide feed-forward": (model(intermediate_size=8192), [(0, 512)], GREEDY, 1.05),
    "wide hidden states, norms of one pass": (model(hidden_size=4096), [(0, 128)], GREEDY, 2.3),
    "experts": (model(moe=MoESpec(4, 1, 8192, True)), [(0, 256)], GREEDY, 1.8),
    "large vocabulary, whole rows ranked": (model(vocab_size=32_000), [(63, 1)] * 32, RANKED, 1.05),
}


@pytest.mark.parametrize(("spec", "shape", "params", "slack"), CASES.values(), ids=CASES)
def test_no_step_needs_more_than_planned(
    spec: ModelSpec, shape: Shape, params: SamplingParams, slack: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step at its limits comes close to the plan (only one expert that gets every token would, for experts). Rows are
    ranked, as they are on devices without kernels of their own.
    """
    monkeypatch.setattr(draw, "limit", draw._limit)
    limits = StepLimits(sum(new for _, new in shape), len(shape), max(sum(s) for s in shape))
    planned = activation_bytes(from_spec(spec, "m", Precision.plain(spec.dtype)), limits)
    measured = measured_peak(spec, shape, params)
    assert measured <= 1.01 * planned
    assert planned <= slack * measured


def test_norms_of_several_operations_are_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are on devices without kernels of their own."""
    monkeypatch.setattr(rows, "serves", lambda x: False)
    spec, shape = model(hidden_size=4096), [(0, 128)]
    planned = activation_bytes(from_spec(spec, "m", BF16), StepLimits(128, 1, 128))
    measured = measured_peak(spec, shape, GREEDY)
    assert measured <= 1.01 * planned
    assert planned <= 1.05 * measured


def test_a_greedy_step_stays_far_below_the_worst_case() -> None:
    spec = model(vocab_size=32_000)
    limits = StepLimits(32, 32, 64)
    assert measured_peak(spec, [(63, 1)] * 32, GREEDY) < activation_bytes(from_spec(spec, "m", BF16), limits) / 4


def test_the_formula_knows_the_attention_that_runs() -> None:
    """The planner imports no torch, so it repeats these numbers."""
    assert activations.MAX_SCORES == reference.MAX_SCORES
    assert activations.MAX_KEYS == tiles.MAX_KEYS
    assert activations.RANKED_AT_ONCE == ranking.AT_ONCE


def test_what_is_cached_bounds_what_is_read() -> None:
    """256 sequences cannot all have the longest context when the cache holds only one such."""
    planned = from_spec(model(), "m", BF16)
    bounded = activation_bytes(planned, StepLimits(512, 256, 1 << 16, cached=1 << 16))
    assert bounded < activation_bytes(planned, StepLimits(512, 256, 1 << 16))


def test_ranks_share_the_work() -> None:
    planned = from_spec(model(intermediate_size=8192, vocab_size=10), "m", BF16)
    limits = StepLimits(512, 1, 512)
    assert activation_bytes(planned, limits, tensor_parallel=4) < activation_bytes(planned, limits) / 2
