"""One small adapter per model family, and the registry of architectures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvtrove.config import nearest
from kvtrove.models.families import (
    deepseek,
    exaone,
    gemma,
    gemma3n,
    gemma4,
    glm,
    gpt_oss,
    granite,
    granite_hybrid,
    hunyuan,
    lfm,
    llama,
    llama4,
    mistral,
    mlkv,
    olmo,
    phi,
    qwen,
    qwen_next,
    smollm,
    yoco,
)
from kvtrove.models.families.common import Family
from kvtrove.models.spec import ModelError

REGISTRY: dict[str, Family] = {
    **llama.FAMILIES,
    **llama4.FAMILIES,
    **mistral.FAMILIES,
    **qwen.FAMILIES,
    **gemma.FAMILIES,
    **gemma3n.FAMILIES,
    **gemma4.FAMILIES,
    **glm.FAMILIES,
    **phi.FAMILIES,
    **smollm.FAMILIES,
    **granite.FAMILIES,
    **olmo.FAMILIES,
    **exaone.FAMILIES,
    **hunyuan.FAMILIES,
    **deepseek.FAMILIES,
    **lfm.FAMILIES,
    **qwen_next.FAMILIES,
    **granite_hybrid.FAMILIES,
    **gpt_oss.FAMILIES,
    **mlkv.FAMILIES,
    **yoco.FAMILIES,
}


MODEL_TYPES = {
    "llama": "LlamaForCausalLM",
    "llama4": "Llama4ForConditionalGeneration",
    "llama4_text": "Llama4ForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3n": "Gemma3nForConditionalGeneration",
    "gemma3n_text": "Gemma3nForCausalLM",
    "gemma4": "Gemma4ForConditionalGeneration",
    "gemma4_text": "Gemma4ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "exaone4": "Exaone4ForCausalLM",
    "hunyuan_v1_moe": "HunYuanMoEV1ForCausalLM",
    "hunyuan_v1_dense": "HunYuanDenseV1ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "glm4_moe": "Glm4MoeForCausalLM",
    "seed_oss": "SeedOssForCausalLM",
    "ernie4_5": "Ernie4_5ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "granitemoe": "GraniteMoeForCausalLM",
    "granitemoeshared": "GraniteMoeSharedForCausalLM",
    "ministral": "MinistralForCausalLM",
    "ministral3": "Ministral3ForCausalLM",
    "mistral3": "Mistral3ForConditionalGeneration",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "mlkv": "MlkvForCausalLM",
    "yoco": "YocoForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "glm4_moe_lite": "Glm4MoeLiteForCausalLM",
    "lfm2": "Lfm2ForCausalLM",
    "granitemoehybrid": "GraniteMoeHybridForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
}
"""`model_type` of a config that names no architecture -> the architecture that transformers takes for it."""


def architecture_of(values: Mapping[str, Any]) -> str | None:
    """The architecture of a config.json: the first supported one that it names, else its first, else by model type."""
    named = values.get("architectures") or []
    named = [str(name) for name in named] if isinstance(named, list) else [str(named)]
    by_type = MODEL_TYPES.get(str(values.get("model_type")))
    return next((name for name in named if name in REGISTRY), named[0] if named else by_type)


def find_family(architecture: str) -> Family:
    """The adapter of an architecture as config.json names it. Raises ModelError with the supported ones."""
    if architecture not in REGISTRY:
        supported = ", ".join(sorted(REGISTRY))
        raise ModelError(
            f"architecture {architecture!r} is not supported{nearest(architecture, REGISTRY)}; supported: {supported}"
        )
    return REGISTRY[architecture]
