"""`general.architecture` -> the family that runs it, and what its metadata is called in a config.json. No torch.

Names and transforms are those of llama.cpp's converters (convert_hf_to_gguf.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import erf, sqrt
from typing import Any

from kvtrove.config import nearest
from kvtrove.models.config_view import ConfigView
from kvtrove.models.families import find_family
from kvtrove.models.families.common import (
    FULL,
    SLIDING,
    Locate,
    Source,
    first_experts,
    fused_gate,
    same_name,
)
from kvtrove.models.families.granite_hybrid import MAMBA
from kvtrove.models.families.lfm import CONV
from kvtrove.models.families.qwen_next import LINEAR, locate_35, locate_next
from kvtrove.models.gguf.header import GGUFHeader
from kvtrove.models.gguf.names import Place
from kvtrove.models.gguf.orders import Orders, as_written, rotary_pairs, tiled_values
from kvtrove.models.spec import ModelError, ModelSpec

Config = dict[str, Any]
_SIGMOID = 2
"""`expert_gating_func`: 1 is softmax."""
_MAVERICK = 128
"""Experts of the Llama 4 that does not normalise queries and keys; its files do not say so."""
_STILL = 1e20
"""Least factor of a pair of elements that does not rotate."""


@dataclass(frozen=True)
class Architecture:
    """How a model of `general.architecture` is read by the family of another name.

    more: further keys of its config.json, given the metadata without the architecture in front (`own_metadata`), as
    orders: rows and columns that lie in another order. norm_offset: what was added to norm weights when the file was
    written. locate: parameters that lie joined in one tensor. post_norms: the norm behind attention is called so.
    places: names of tensors that no other architecture has -> where they lie.
    """

    family: str
    more: Callable[[ConfigView, Config], None] = lambda view, config: None
    orders: Callable[[ConfigView], Orders] = as_written
    norm_offset: float = 0.0
    locate: Locate = same_name
    post_norms: bool = False
    places: Mapping[str, Place] = field(default_factory=dict)


def _llama(view: ConfigView, config: Config) -> None:
    if "n_routed_experts" in config:
        config["architecture"] = "MixtralForCausalLM"
        config["num_local_experts"] = config["n_routed_experts"]


def _mistral3(view: ConfigView, config: Config) -> None:
    """Ministral 3, whose queries grow with their position, or an older model under the same name."""
    if not view.has("attention.temperature_scale"):
        return _llama(view, config)
    config["architecture"] = "Ministral3ForCausalLM"
    scaling = _mscaled(view, config, 1.0, 1.0) or {"rope_type": "default", "rope_theta": config["rope_theta"]}
    scaling.setdefault(
        "original_max_position_embeddings",
        view.size("rope.scaling.original_context_length", config["max_position_embeddings"]),
    )
    config["rope_scaling"] = {**scaling, "llama_4_scaling_beta": view.number("attention.temperature_scale")}


def _mscaled(view: ConfigView, config: Config, unit: float, mscale: float | None) -> Config | None:
    """The scaling of rotary embeddings with YaRN's temperatures. unit: what `yarn_log_multiplier` counts in.

    mscale: None as `mscale_all_dim`, which alone is in the file.
    """
    scaling: Config | None = config["rope_scaling"]
    weight = view.number("rope.scaling.yarn_log_multiplier", 0.0) / unit
    if scaling is None or not weight:
        return scaling
    return {**scaling, "mscale": weight if mscale is None else mscale, "mscale_all_dim": weight}


def _qwen2_moe(view: ConfigView, config: Config) -> None:
    inner = config["intermediate_size"]
    config["num_experts"] = config.get("n_routed_experts")
    config.setdefault("moe_intermediate_size", inner // max(1, view.size("expert_used_count")))
    config["shared_expert_intermediate_size"] = view.size("expert_shared_feed_forward_length", inner)


def _qwen3_moe(view: ConfigView, config: Config) -> None:
    config["num_experts"] = config.get("n_routed_experts")
    config["norm_topk_prob"] = view.flag("expert_weights_norm", True)


def _gemma(view: ConfigView, config: Config) -> None:
    kind = config["model_type"]
    config["final_logit_softcapping"] = view.optional_number("final_logit_softcapping")
    if kind == "gemma2":
        config["attn_logit_softcapping"] = view.optional_number("attn_logit_softcapping")
    if "sliding_window" not in config:
        config["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
    if base := view.optional_number("rope.freq_base_swa"):
        config["rope_local_base_freq"] = base
    # The files do not say how queries are scaled: by the head's size, but for the models of 27 billion parameters.
    largest = config["num_hidden_layers"] == (46 if kind == "gemma2" else 62)
    heads = view.size("attention.head_count")
    config["query_pre_attn_scalar"] = config["hidden_size"] // heads if largest else config["head_dim"]
    if config["dtype"] == "float16":  # activations of these models pass the largest float16
        config["dtype"] = "bfloat16"


def _gemma3n(view: ConfigView, config: Config) -> None:
    _gemma(view, config)
    config |= {
        "final_logit_softcapping": view.number("final_logit_softcapping", 30.0),
        "hidden_size_per_layer_input": view.size("embedding_length_per_layer_input"),
        "vocab_size_per_layer_input": config["vocab_size"],
        "altup_num_inputs": view.size("altup.num_inputs"),
        "altup_active_idx": view.size("altup.active_idx", least=0),
    }
    if isinstance(cutoffs := view.get("activation_sparsity_scale"), array):  # in standard deviations of the gates
        shares = [(1 + erf(cutoff / sqrt(2))) / 2 for cutoff in cutoffs[: config["num_hidden_layers"]]]
        config["activation_sparsity_pattern"] = shares


def _gemma4(view: ConfigView, config: Config) -> None:
    _gemma(view, config)
    inner, kv, scaling = config["intermediate_size"], config["num_key_value_heads"], config["rope_scaling"]
    if isinstance(inner, list):
        config["intermediate_size"], config["use_double_wide_mlp"] = min(inner), True
    if isinstance(kv, list):
        of_kind = dict(zip(config["layer_types"], kv, strict=True))
        config["num_global_key_value_heads"] = of_kind[FULL]
        config["num_key_value_heads"] = of_kind.get(SLIDING, of_kind[FULL])
    factors = [] if scaling is None else scaling.get("short_factor", [])  # far beyond 1 for pairs that do not turn
    part = sum(factor < _STILL for factor in factors) / len(factors) if factors else 0.25
    full = {"rope_type": "proportional", "partial_rotary_factor": part, "rope_theta": config["rope_theta"]}
    sliding = {"rope_type": "default", "rope_theta": view.number("rope.freq_base_swa", 10_000.0)}
    config |= {
        "global_head_dim": config["head_dim"],
        "head_dim": view.size("attention.key_length_swa", config["head_dim"]),
        "rope_parameters": {FULL: full, SLIDING: sliding},
        "hidden_size_per_layer_input": view.size("embedding_length_per_layer_input", 0, least=0),
        "vocab_size_per_layer_input": config["vocab_size"],
    }
    if "n_routed_experts" in config:
        config |= {"enable_moe_block": True, "num_experts": config["n_routed_experts"]}
        config["top_k_experts"] = config["num_experts_per_tok"]


def _gemma4_experts(name: str, spec: ModelSpec) -> Source:
    """layers.0.mlp.experts.3.up_proj.weight -> the second half of layers.0.mlp.experts.3.gate_up_proj.weight"""
    if ".mlp.experts." not in name or ".down_proj." in name:
        return Source(name)
    expert, part, _ = name.rsplit(".", 2)
    return fused_gate(part, f"{expert}.gate_up_proj.weight", first_experts(spec).intermediate_size)


def _phi3(view: ConfigView, config: Config) -> None:
    _partial(view, config)
    config["original_max_position_embeddings"] = view.size(
        "rope.scaling.original_context_length", config["max_position_embeddings"]
    )


def _partial(view: ConfigView, config: Config) -> None:
    config["partial_rotary_factor"] = view.size("rope.dimension_count", config["head_dim"]) / config["head_dim"]


def _glm4(view: ConfigView, config: Config) -> None:
    if view.has("rope.dimension_sections"):
        raise view.error("'rope.dimension_sections': models that also see are not supported")
    _partial(view, config)


def _glm4_moe(view: ConfigView, config: Config) -> None:
    _glm4(view, config)
    _routed(view, config)
    if view.size("expert_gating_func", _SIGMOID, least=0) not in (0, _SIGMOID):
        raise view.error("'expert_gating_func' of another kind than sigmoid (2) is not supported")


def _routed(view: ConfigView, config: Config) -> None:
    """Experts beside those that all tokens visit, behind layers that have none."""
    config["n_shared_experts"] = view.size("expert_shared_count", 0, least=0)
    config["first_k_dense_replace"] = view.size("leading_dense_block_count", 0, least=0)
    config["routed_scaling_factor"] = view.number("expert_weights_scale", 1.0) or 1.0
    config["norm_topk_prob"] = view.flag("expert_weights_norm", False)
    config["n_group"] = view.size("expert_group_count", 1)
    config["topk_group"] = view.size("expert_group_used_count", 1)


def _deepseek2(view: ConfigView, config: Config) -> None:
    """DeepSeek V2, and V3 wherever experts have a learned correction."""
    if view.has("attention.temperature_scale"):
        raise view.error("'attention.temperature_scale' is not supported beside latent attention")
    _routed(view, config)
    config["rope_scaling"] = _mscaled(view, config, 0.1, None)
    if view.size("expert_gating_func", 1, least=0) == _SIGMOID:
        config["architecture"] = "DeepseekV3ForCausalLM"
    config["topk_method"] = "group_limited_greedy" if config["topk_group"] < config["n_group"] else "greedy"


def _granite(view: ConfigView, config: Config) -> None:
    config |= {
        "attention_multiplier": view.number("attention.scale", 0.0) or config["head_dim"] ** -0.5,
        "embedding_multiplier": view.number("embedding_scale", 0.0) or 1.0,
        "residual_multiplier": view.number("residual_scale", 0.0) or 1.0,
        "logits_scaling": view.number("logit_scale", 0.0) or 1.0,
        "position_embedding_type": "rope" if view.flag("rope.scaling.finetuned", True) else "nope",
    }
    if "n_routed_experts" in config:
        config["architecture"] = "GraniteMoeSharedForCausalLM"
        config["num_local_experts"] = config["n_routed_experts"]
        config["shared_intermediate_size"] = view.size("expert_shared_feed_forward_length", 0, least=0)


def _olmo2(view: ConfigView, config: Config) -> None:
    if "sliding_window" in config:
        config["architecture"] = "Olmo3ForCausalLM"


def _exaone4(view: ConfigView, config: Config) -> None:
    if config["num_hidden_layers"] == 64:  # older files of the model of 32 billion parameters do not say it
        config.setdefault("sliding_window", 4096)


def _gpt_oss(view: ConfigView, config: Config) -> None:
    config["num_local_experts"] = config.get("n_routed_experts")
    config["intermediate_size"] = config.get("moe_intermediate_size", config["intermediate_size"])
    if config["rope_scaling"] is not None:  # files do not say that bounds of the ramp are not rounded
        config["rope_scaling"] = {**config["rope_scaling"], "truncate": False}


def _mixed(config: Config, other: str) -> Config:
    """Layers that the file gives no heads of keys are of type `other`."""
    kv, count = config["num_key_value_heads"], config["num_hidden_layers"]
    each = kv if isinstance(kv, list) else [kv] * count
    return {"layer_types": [FULL if heads else other for heads in each], "num_key_value_heads": max(each)}


def _lfm2(view: ConfigView, config: Config) -> None:
    config |= {
        **_mixed(config, CONV),
        "block_auto_adjust_ff_dim": False,
        "conv_L_cache": view.size("shortconv.l_cache"),
        "norm_eps": config["rms_norm_eps"],
    }


def _granite_hybrid(view: ConfigView, config: Config) -> None:
    _granite(view, config)
    inner, heads = view.size("ssm.inner_size"), view.size("ssm.time_step_rank")
    config |= {
        **_mixed(config, MAMBA[0]),
        "architecture": "GraniteMoeHybridForCausalLM",
        "num_local_experts": config.get("n_routed_experts", 0),
        "shared_intermediate_size": config.get("shared_intermediate_size") or config["intermediate_size"],
        "mamba_expand": inner // config["hidden_size"],
        "mamba_n_heads": heads,
        "mamba_d_head": inner // heads,
        "mamba_d_state": view.size("ssm.state_size"),
        "mamba_n_groups": view.size("ssm.group_count"),
        "mamba_d_conv": view.size("ssm.conv_kernel"),
    }


def _delta(view: ConfigView, config: Config) -> None:
    """Qwen3-Next and Qwen 3.5. Axes of positions (`rope.dimension_sections`) are one where there is text alone."""
    _partial(view, config)
    values = view.size("ssm.time_step_rank")
    config |= {
        "linear_num_key_heads": view.size("ssm.group_count"),
        "linear_num_value_heads": values,
        "linear_key_head_dim": view.size("ssm.state_size"),
        "linear_value_head_dim": view.size("ssm.inner_size") // values,
        "linear_conv_kernel_dim": view.size("ssm.conv_kernel"),
        "full_attention_interval": view.size("full_attention_interval", 4),
    }
    if isinstance(linear := view.get("attention.recurrent_layers"), array):
        config["layer_types"] = [LINEAR if one else FULL for one in linear[: config["num_hidden_layers"]]]
    if "n_routed_experts" in config:
        _qwen2_moe(view, config)


def _joined_delta(name: str, spec: ModelSpec) -> Source:
    """q, k and v of Gated DeltaNet lie in one tensor; of Qwen3-Next, so do b and a."""
    if spec.family == "qwen3_next" and name.endswith((".in_proj_b.weight", ".in_proj_a.weight")):
        return locate_next(name, spec)
    return locate_35(name, spec) if ".linear_attn." in name else Source(name)


_DELTA: Config = {"locate": _joined_delta, "norm_offset": 1.0, "post_norms": True}


def _olmoe(view: ConfigView, config: Config) -> None:
    config["num_experts"] = config.get("n_routed_experts")
    config["clip_qkv"] = view.optional_number("attention.clamp_kqv")


def _hunyuan_moe(view: ConfigView, config: Config) -> None:
    config["num_experts"] = config.get("n_routed_experts")
    config["moe_topk"] = config.get("num_experts_per_tok")
    config["num_shared_expert"] = view.size("expert_shared_count", 1)


def _llama4(view: ConfigView, config: Config) -> None:
    """Chunks, scales of queries, and layers without positions are those of the published models: no file says them."""
    if view.size("attention.sliding_window", 1, least=0) == 0 or "n_routed_experts" not in config:
        raise view.error("models without chunks of attention or without experts are not supported")
    config |= {
        "num_local_experts": config["n_routed_experts"],
        "intermediate_size_mlp": config["intermediate_size"],
        "intermediate_size": view.size("expert_feed_forward_length"),
        "interleave_moe_layer_step": view.size("interleave_moe_layer_step"),
        "use_qk_norm": config["n_routed_experts"] != _MAVERICK,
    }


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("LlamaForCausalLM", _llama, orders=rotary_pairs),
    "llama4": Architecture("Llama4ForCausalLM", _llama4),
    "qwen2": Architecture("Qwen2ForCausalLM"),
    "qwen2moe": Architecture("Qwen2MoeForCausalLM", _qwen2_moe),
    "qwen3": Architecture("Qwen3ForCausalLM"),
    "qwen3moe": Architecture("Qwen3MoeForCausalLM", _qwen3_moe),
    "qwen2vl": Architecture("Qwen2ForCausalLM"),
    "qwen3vl": Architecture("Qwen3ForCausalLM"),
    "qwen3vlmoe": Architecture("Qwen3MoeForCausalLM", _qwen3_moe),
    "qwen3next": Architecture("Qwen3NextForCausalLM", _delta, **_DELTA),
    "qwen35": Architecture("Qwen3_5ForCausalLM", _delta, tiled_values, **_DELTA),
    "qwen35moe": Architecture("Qwen3_5MoeForCausalLM", _delta, tiled_values, **_DELTA),
    "gemma2": Architecture("Gemma2ForCausalLM", _gemma, norm_offset=1.0, post_norms=True),
    "gemma3": Architecture("Gemma3ForCausalLM", _gemma, norm_offset=1.0, post_norms=True),
    "gemma3n": Architecture("Gemma3nForCausalLM", _gemma3n, post_norms=True),
    "gemma4": Architecture("Gemma4ForCausalLM", _gemma4, locate=_gemma4_experts, post_norms=True),
    "phi3": Architecture("Phi3ForCausalLM", _phi3, locate=find_family("Phi3ForCausalLM").locate),
    "smollm3": Architecture("SmolLM3ForCausalLM", orders=rotary_pairs),
    "granite": Architecture("GraniteForCausalLM", _granite, orders=rotary_pairs),
    "granitehybrid": Architecture("GraniteMoeHybridForCausalLM", _granite_hybrid, orders=rotary_pairs),
    "granitemoe": Architecture("GraniteMoeSharedForCausalLM", _granite, orders=rotary_pairs),
    "olmoe": Architecture("OlmoeForCausalLM", _olmoe),
    "olmo2": Architecture("Olmo2ForCausalLM", _olmo2, post_norms=True),
    "exaone4": Architecture("Exaone4ForCausalLM", _exaone4, post_norms=True),
    "hunyuan-dense": Architecture("HunYuanDenseV1ForCausalLM"),
    "hunyuan-moe": Architecture("HunYuanMoEV1ForCausalLM", _hunyuan_moe),
    "glm4": Architecture("Glm4ForCausalLM", _glm4, locate=find_family("GlmForCausalLM").locate, post_norms=True),
    "glm4moe": Architecture("Glm4MoeForCausalLM", _glm4_moe, post_norms=True),
    "seed_oss": Architecture("SeedOssForCausalLM", post_norms=True),
    "ernie4_5": Architecture("Ernie4_5ForCausalLM"),
    "mistral3": Architecture("LlamaForCausalLM", _mistral3, orders=rotary_pairs),
    "gpt-oss": Architecture("GptOssForCausalLM", _gpt_oss, post_norms=True),
    "lfm2": Architecture("Lfm2ForCausalLM", _lfm2, places={"output_norm.weight": Place("token_embd_norm.weight")}),
    "deepseek2": Architecture("DeepseekV2ForCausalLM", _deepseek2),
}


def own_metadata(header: GGUFHeader) -> ConfigView:
    """What the file says under the name of its architecture, without that name."""
    prefix = f"{header.architecture}."
    own = {key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)}
    return ConfigView(own, f"{header.path}: {header.architecture}")


def find_architecture(header: GGUFHeader) -> Architecture:
    """ModelError names the supported ones."""
    name = header.architecture
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{header.path}: 'general.architecture' {name!r} is not supported{nearest(name, ARCHITECTURES)}; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]
