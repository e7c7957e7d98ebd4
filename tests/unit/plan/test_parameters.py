"""Parameter counts against the models that Hugging Face transformers builds on the meta device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kvtrove.plan.model import PlanModel
from kvtrove.plan.source import read_model
from tests.checkpoints import FAMILIES, config_class
from tests.unit.plan import configs

_BASE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 3,
}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **FAMILIES,
    "qwen2_tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3_moe_sparse_step": (
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 2},
    ),
    "deepseek_v2": ("DeepseekV2", _LATENT),
    "deepseek_v3": ("DeepseekV3", _LATENT),
    "deepseek_v3_plain_queries": ("DeepseekV3", {**_LATENT, "q_lora_rank": None}),
}


def built(architecture: str, differences: dict[str, Any], directory: Path) -> tuple[Any, PlanModel]:
    """The model of transformers on the meta device, and what the planner reads from its config.json."""
    import transformers

    config = getattr(transformers, config_class(architecture))(**{**_BASE, **differences})
    with torch.device("meta"):
        model = getattr(transformers, f"{architecture}ForCausalLM")(config)
    values = {**config.to_dict(), "architectures": [f"{architecture}ForCausalLM"]}
    (directory / "config.json").write_text(json.dumps(values))
    return model, read_model(directory, "bfloat16")


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_is_counted(case: str, tmp_path: Path) -> None:
    model, planned = built(*CASES[case], tmp_path)
    assert planned.parameters.total == model.num_parameters()
    assert planned.exact_weights


@pytest.mark.parametrize("case", CASES)
def test_what_every_token_visits_is_all_but_lookup_and_experts(case: str, tmp_path: Path) -> None:
    model, planned = built(*CASES[case], tmp_path)
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    lookup = 0 if model.config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    lookup += sum(p.numel() for name, p in model.named_parameters() if "embed_tokens_per_layer" in name)
    assert planned.parameters.experts == experts
    assert planned.parameters.every_token == model.num_parameters() - experts - lookup


def test_norm_weights_of_gemma_stay_in_float32(tmp_path: Path) -> None:
    """The engine adds 1 to them in float32 and keeps them so."""
    model, planned = built(*CASES["gemma2"], tmp_path)
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    assert planned.weight_bytes == 2 * model.num_parameters() + 2 * norms


KNOWN = {
    "Llama-3.1-8B": (configs.LLAMA_31_8B, 8_030_261_248),
    "Llama-3.1-70B": (configs.LLAMA_31_70B, 70_553_706_496),
    "Llama-2-7B": (configs.LLAMA_2_7B, 6_738_415_616),
    "Qwen3-8B": (configs.QWEN3_8B, 8_190_735_360),
    "Qwen2.5-0.5B": (configs.QWEN25_05B, 494_032_768),
    "DeepSeek-V3": (configs.DEEPSEEK_V3, 671_026_404_352),  # without the 58 x 256 routing biases, which are buffers
}


@pytest.mark.parametrize(("config", "total"), KNOWN.values(), ids=KNOWN)
def test_well_known_models_have_their_well_known_size(config: dict[str, Any], total: int, tmp_path: Path) -> None:
    model = read_model(configs.write(tmp_path, config))
    assert (model.parameters.total, model.weight_bytes) == (total, 2 * total)


@pytest.mark.parametrize(
    ("config", "total", "exact"), [(configs.GEMMA4_E2B, 4.65e9, True), (configs.AFM_3B, 3.18e9, False)]
)
def test_an_estimate_says_that_it_is_one(config: dict[str, Any], total: float, exact: bool, tmp_path: Path) -> None:
    model = read_model(configs.write(tmp_path, config))
    assert model.exact_weights == exact
    assert model.parameters.total == pytest.approx(total, rel=0.05)


def test_a_larger_batch_visits_more_experts(tmp_path: Path) -> None:
    model = read_model(configs.write(tmp_path, configs.DEEPSEEK_V3))
    assert model.active_parameters(1) == pytest.approx(37e9, rel=0.02), "DeepSeek-V3 has 37 B active parameters"
    assert model.active_parameters(1) < model.active_parameters(8) < model.active_parameters(10**6)
    everything = model.parameters.total - model.vocab_size * model.hidden_size
    assert model.active_parameters(10**6) == pytest.approx(everything)
