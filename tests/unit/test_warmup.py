"""The worst steps at start: how large they are, what they leave behind, and what follows from their measure."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from kvtrove.config import ConfigError, EngineConfig
from kvtrove.engine import Engine
from kvtrove.llm import LLM
from kvtrove.models.spec import ModelSpec, RopeSpec
from kvtrove.plan import process
from kvtrove.plan.activations import StepLimits
from kvtrove.plan.capacity import Capacity
from kvtrove.plan.kv import cache_of
from kvtrove.plan.ledger import Ledger
from kvtrove.plan.model import PlanModel
from kvtrove.plan.source import read_model
from kvtrove.plan.startup import StartSettings, plan_start, settle
from kvtrove.request import SamplingParams
from kvtrove.warmup import Measured, warm_up, worst_steps
from tests.checkpoints import Checkpoints
from tests.specs import layer_spec, numbered
from tests.unit.plan import configs
from tests.unit.plan.peak import PeakBytes, random_runner

MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize("tokens", [8, 64, 512])
@pytest.mark.parametrize("sequences", [1, 8])
@pytest.mark.parametrize(("context", "cached"), [(4, 64), (96, 96), (1000, 5000), (1000, None)])
def test_worst_steps_are_at_the_limits_and_not_beyond(
    tokens: int, sequences: int, context: int, cached: int | None
) -> None:
    steps = list(worst_steps(StepLimits(tokens, sequences, context, cached)))
    for step in steps:
        assert 0 < sum(new for _, new in step) <= tokens
        assert len(step) <= sequences
        assert max(map(sum, step)) <= context
    prompt, decodes, _ = steps
    assert sum(prompt[0]) == context
    assert len(decodes) == min(sequences, tokens)
    assert decodes[0] == (context - 1, 1)
    if context > tokens:
        assert sum(new for _, new in prompt) == tokens


def model(layers: int) -> ModelSpec:
    rope = RopeSpec(1e4, 32, max_position=4096)
    wide, narrow = layer_spec(2, 32, rope), layer_spec(2, 32, rope, window=64)
    return ModelSpec(
        family="llama",
        architecture="LlamaForCausalLM",
        vocab_size=500,
        hidden_size=128,
        intermediate_size=704,
        num_heads=8,
        layers=numbered(wide, *(narrow,) * (layers - 1)),
        max_position=4096,
        norm_eps=1e-5,
        activation="silu",
        dtype="float32",
        query_scale=32**-0.5,
    )


def peak_of_warm_up(layers: int) -> int:
    runner = random_runner(model(layers), 64)
    existing = [t for t in gc.get_objects() if type(t) is Tensor]
    with PeakBytes(existing) as peak:
        warm_up(runner, StepLimits(256, 4, 1024, 2048))
    return peak.peak


def test_one_layer_of_each_kind_has_the_peak_of_all() -> None:
    assert peak_of_warm_up(6) == pytest.approx(peak_of_warm_up(2), rel=0.01)


def test_the_cache_stays_as_it_was() -> None:
    runner = random_runner(model(2), 64)
    warm_up(runner, StepLimits(256, 4, 1024, 2048))
    assert not runner.arena.rows.any()


def test_it_measures_what_the_process_holds() -> None:
    """Two kinds of layers with a step of tens of megabytes, so that the C library's own books do not matter."""
    process.return_large_buffers()
    runner = random_runner(replace(model(2), vocab_size=50_000), 64)
    measured = warm_up(runner, StepLimits(1024, 32, 1024, 2048))
    assert measured is not None
    rows = 32 * 50_000 * 4  # bytes of a step's logits; sorting, log-probabilities and draws hold many times as much
    assert 4 * rows < measured.activations < 64 * rows
    assert measured.process < process.resident_bytes()  # type: ignore[operator]


def test_a_machine_that_does_not_tell_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtrove.warmup.reset_peak", lambda: False)
    assert warm_up(random_runner(model(2), 8), StepLimits(32, 4, 64, 256)) is None


def test_answers_are_the_same_with_and_without(checkpoints: Checkpoints) -> None:
    directory = checkpoints.get("gemma2")
    small: dict[str, Any] = {"num_blocks": 64, "max_num_batched_tokens": 32, "max_num_seqs": 4}
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    answers = []
    for warm in (False, True):
        llm = LLM(directory, warm_up=warm, use_tqdm_on_load=False, **small)
        answers.append(llm.generate([[5, 6, 7] * 15], params, use_tqdm=False)[0].outputs[0].token_ids)
        assert llm.llm_engine.ledger.measured is warm
    assert answers[0] == answers[1]


def test_the_engine_takes_a_smaller_cache_when_a_step_takes_more_than_planned(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvtrove.loading.available_bytes", lambda: GIB)
    monkeypatch.setattr("kvtrove.plan.startup.default_kv_bytes", lambda *_: 4 * MIB)
    cold = Engine(EngineConfig(str(checkpoints.get("llama")), max_num_seqs=4, max_num_batched_tokens=64))
    taken = cold.ledger.activations + cold.ledger.free + 3 * MIB
    monkeypatch.setattr("kvtrove.loading.warm_up", lambda *_: Measured(0, taken))
    config = EngineConfig(str(checkpoints.get("llama")), max_num_seqs=4, max_num_batched_tokens=64, warm_up=True)
    engine = Engine(config)
    num_blocks = MIB // engine.runner.cache.block_bytes
    assert engine.kv.stats().num_blocks == engine.runner.arena.num_blocks == num_blocks
    assert engine.ledger.kv == engine.runner.arena.nbytes == num_blocks * engine.runner.cache.block_bytes
    assert engine.ledger.free >= 0
    with pytest.raises(ConfigError, match=r"--kv 1\d{3}KiB fits"):
        Engine(replace(config, kv="4MiB"))


@pytest.fixture
def qwen(tmp_path: Path) -> PlanModel:
    return read_model(configs.write(tmp_path, configs.QWEN25_05B))


def settled(model: PlanModel, settings: StartSettings, more: int) -> tuple[Capacity, Ledger, Capacity, Ledger]:
    """Start as planned and as it is when a step took what was free and `more` bytes."""
    cache = cache_of(model, "bfloat16", 32)
    capacity, ledger = plan_start(model, cache, 4 * GIB, settings)
    measured = ledger.with_measured(ledger.activations + ledger.free + more)
    return capacity, ledger, *settle(capacity, measured, cache, settings)


def test_a_step_that_fits_changes_nothing_but_the_ledger(qwen: PlanModel) -> None:
    capacity, ledger, after, measured = settled(qwen, StartSettings(4, 512), -MIB)
    assert after == capacity
    assert (measured.kv, measured.free, measured.measured) == (ledger.kv, MIB, True)
    assert f"(planned {ledger.activations / MIB:.1f}MiB)"[:14] in measured.sentence()


def test_the_context_shrinks_with_the_cache_unless_it_was_asked_for(qwen: PlanModel) -> None:
    settings = StartSettings(4, 512)
    _, planned, *_ = settled(qwen, settings, -MIB)
    more = planned.kv - 64 * MIB
    capacity, _, after, ledger = settled(qwen, settings, more)
    assert after.max_model_len < capacity.max_model_len
    assert ledger.kv <= 64 * MIB
    assert ledger.free >= 0
    with pytest.raises(ConfigError, match="--max-model-len"):
        settled(qwen, replace(settings, max_model_len=32_768), more)


def test_a_cache_of_a_given_size_is_refused_with_the_size_that_fits(qwen: PlanModel) -> None:
    with pytest.raises(ConfigError, match=r"kv: a step of 512 tokens was measured .* --kv 119MiB fits, or lower"):
        settled(qwen, StartSettings(4, 512, kv=128 * MIB), 8 * MIB)
    with pytest.raises(ConfigError, match=r"do not fit: lower max_num_batched_tokens"):
        settled(qwen, StartSettings(4, 512, kv=128 * MIB), GIB)


def test_a_number_of_blocks_is_taken_as_it_is(qwen: PlanModel) -> None:
    capacity, _, after, ledger = settled(qwen, StartSettings(4, 512, num_blocks=64), 8 * MIB)
    assert after == capacity
    assert ledger.free == -8 * MIB


def test_warm_up_is_yes_or_no() -> None:
    with pytest.raises(ConfigError, match="warm_up: 'sometimes' is not one of True, False"):
        EngineConfig("m", warm_up="sometimes")  # type: ignore[arg-type]


@pytest.mark.parametrize("linear", ["auto", "own", "torch", "onednn"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_kind_of_product_is_warmed_up(linear: str, dtype: str, checkpoints: Checkpoints) -> None:
    """oneDNN's weights are opaque: nothing can read their pages."""
    if (linear, dtype) == ("own", "float32"):
        pytest.skip("own kernels have no float32 weights")
    directory = checkpoints.get("llama", tie_word_embeddings=True)
    config = EngineConfig(
        str(directory), device="cpu", dtype=dtype, linear=linear, warm_up=True, num_blocks=64, max_num_seqs=4
    )
    try:
        engine = Engine(config)
    except ConfigError as error:
        if "oneDNN cannot serve this processor" not in str(error):
            raise
        pytest.skip(str(error))
    engine.add("a", [5, 6, 7], SamplingParams(max_tokens=3, ignore_eos=True))
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    assert len(outputs[-1].outputs[0].token_ids) == 3
