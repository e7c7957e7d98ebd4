"""The plan in other engines' settings, and our command: what it says is what the engine would do."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from kvtrove.cli.options import EngineOptions
from kvtrove.config import EngineConfig
from kvtrove.plan.capacity import fit
from kvtrove.plan.equivalents import KTransformers, ktransformers, llama_cpp, serve_command, vllm
from kvtrove.plan.fitting import Wishes
from kvtrove.plan.planner import Plan, make_plan
from kvtrove.plan.source import read_model
from tests.unit.plan import configs

GIB = 2**30


def plan_of(directory: Path, config: dict[str, Any] = configs.LLAMA_31_8B, **wishes: Any) -> Plan:
    return make_plan(read_model(configs.write(directory, config)), Wishes(**{"memory": 40 * GIB, **wishes}))


def test_ktransformers_documented_example() -> None:
    """4 users x 16,224 new tokens: 64,896 slots, twice that recommended."""
    settings = KTransformers(cache_lens=129_792, max_new_tokens=16_224, max_batch_size=4)
    assert (settings.simple_rule, settings.recommended) == (64_896, 129_792)
    assert settings.problems() == []


def test_the_check_counts_prompts_which_the_simple_rule_forgets() -> None:
    settings = KTransformers(cache_lens=65_000, max_new_tokens=16_224, max_batch_size=4, prompt_tokens=8_000)
    assert settings.cache_lens > settings.simple_rule, "its own rule is content"
    (problem,) = settings.problems()
    assert "holds 2 of 4 requests of 8000 prompt + 16224 new tokens: set it to 97024" in problem
    fixed = KTransformers(97_024, 16_224, 4, 8_000)
    assert fixed.problems() == []


def test_ktransformers_settings_of_a_plan(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, context=8192, users=4)
    settings = ktransformers(plan, prompt=7000, new=1000)
    assert settings == KTransformers(32_000, 1000, 4, 7000)
    assert settings.arguments == "--cache_lens 32000 --max_new_tokens 1000 --max_batch_size 4"


def test_llama_cpp_shares_its_context_between_slots(tmp_path: Path) -> None:
    assert " -c 32768 -np 4 " in llama_cpp(plan_of(tmp_path, context=8192, users=4))
    assert "-ctk q8_0 -ctv q8_0 -fa on" in llama_cpp(plan_of(tmp_path, context=8192, users=4, cache="int8"))


def test_vllm_gets_the_same_cache(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, context=8192, users=4, tensor_parallel=2)
    command = vllm(plan)
    assert f"--kv-cache-memory-bytes {plan.ledger.kv} --kv-cache-dtype auto" in command
    assert command.endswith("--tensor-parallel-size 2")


@pytest.mark.parametrize(
    "wishes",
    [
        {"context": 8192, "users": 4},
        {"users": 3},
        {"context": 1000, "users": 3000, "memory": 600 * GIB},
        {"kv": 3 * GIB + 12_345},
        {"block_size": 16, "cache": "fp32", "max_num_batched_tokens": 512},
    ],
)
def test_the_command_starts_what_was_planned(wishes: dict[str, Any], tmp_path: Path) -> None:
    """Its flags exist, their values are valid, and the engine's own arithmetic arrives at the planned blocks."""
    plan = plan_of(tmp_path, **wishes)
    command, why_not = serve_command(plan)
    assert command
    assert not why_not
    words = shlex.split(command)
    assert words[:3] == ["kvtrove", "serve", plan.model.name]
    flags = {name.removeprefix("--").replace("-", "_"): x for name, x in zip(words[3::2], words[4::2], strict=True)}
    assert set(flags) <= {flag.name for flag in EngineOptions.flags()}
    numbers = {k: int(x) if x.isdigit() and k != "kv" else x for k, x in flags.items()}
    config, _ = EngineConfig.from_kwargs(plan.model.name, **numbers)
    assert isinstance(config.kv, int)
    blocks = config.kv // plan.fitting.cache.block_bytes
    assert blocks == plan.num_blocks
    capacity = fit(plan.fitting.cache, blocks, plan.context, config.max_num_batched_tokens, required=True)
    assert (capacity.max_model_len, config.max_num_seqs) == (plan.context, plan.users)


@pytest.mark.parametrize(
    ("config", "wishes", "why"),
    [
        (
            configs.DEEPSEEK_V3 | {"architectures": ["DeepseekV32ForCausalLM"]},
            {"memory": 2000 * GIB},
            "it does not run DeepseekV32ForCausalLM",
        ),
        (configs.LLAMA_31_8B, {"tensor_parallel": 2}, "it runs on one device"),
    ],
)
def test_no_command_for_what_the_engine_cannot_do(
    config: dict[str, Any], wishes: Any, why: str, tmp_path: Path
) -> None:
    command, why_not = serve_command(plan_of(tmp_path, config, **wishes))
    assert command is None
    assert why in why_not
