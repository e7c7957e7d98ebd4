"""GGUF files of tiny checkpoints, written with the `gguf` library as llama.cpp's converter writes them.

    write_gguf(checkpoints.get("gemma3"), tmp_path / "m.gguf", "Q8_0")

Names of keys are the library's; what the converter does to tensors is in gguf_tensors.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import torch
from gguf.quants import quantize

from tests.gguf_tensors import DELTA, of_full_layers, tensors

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "MixtralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma4ForCausalLM": "gemma4",
    "Phi3ForCausalLM": "phi3",
    "SmolLM3ForCausalLM": "smollm3",
    "GraniteForCausalLM": "granite",
    "GraniteMoeSharedForCausalLM": "granitemoe",
    "Olmo2ForCausalLM": "olmo2",
    "Olmo3ForCausalLM": "olmo2",
    "Exaone4ForCausalLM": "exaone4",
    "HunYuanDenseV1ForCausalLM": "hunyuan-dense",
    "Glm4ForCausalLM": "glm4",
    "Glm4MoeForCausalLM": "glm4moe",
    "Qwen2MoeForCausalLM": "qwen2moe",
    "Ernie4_5ForCausalLM": "ernie4_5",
    "SeedOssForCausalLM": "seed_oss",
    "Ministral3ForCausalLM": "mistral3",
    "GptOssForCausalLM": "gpt-oss",
    "Lfm2ForCausalLM": "lfm2",
    "DeepseekV2ForCausalLM": "deepseek2",
    "DeepseekV3ForCausalLM": "deepseek2",
    "Gemma3nForCausalLM": "gemma3n",
    "Glm4MoeLiteForCausalLM": "deepseek2",
    "Llama4ForCausalLM": "llama4",
    "OlmoeForCausalLM": "olmoe",
    "HunYuanMoEV1ForCausalLM": "hunyuan-moe",
    "Qwen3NextForCausalLM": "qwen3next",
    "Qwen3_5ForCausalLM": "qwen35",
    "GraniteMoeHybridForCausalLM": "granitehybrid",
}
SCALES = {
    **{"attention_multiplier": "attention_scale", "embedding_multiplier": "embedding_scale"},
    **{"residual_multiplier": "residual_scale", "logits_scaling": "logit_scale"},
}
BYTE_LEVEL, CONTROL, NORMAL = "gpt2", 3, 1


def write_gguf(
    directory: Path, path: Path, kind: str = "F32", split: int = 0, arch: str | None = None, **changes: Any
) -> Path:
    """kind: type of all matrices whose rows its blocks fill. split: tensors in a file at most; 0 is one file for all.

    arch: another name of the architecture, which has the same tensors. changes: metadata under its full name, with "/"
    for "." and None to leave a key out. Returns the (first) file.
    """
    config = json.loads((directory / "config.json").read_text())
    arch = arch or ARCHITECTURES[config["architectures"][0]]
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    _describe(writer, arch, config)
    _add_tokenizer(writer, directory)
    for name, value in tensors(directory, arch, config):
        wanted = gguf.GGMLQuantizationType[kind] if value.ndim > 1 else gguf.GGMLQuantizationType.F32
        if value.ndim > 1 and value.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
            wanted = gguf.GGMLQuantizationType.F32
        stored = value if wanted == gguf.GGMLQuantizationType.F32 else quantize(value, wanted)
        writer.add_tensor(name, stored, raw_dtype=wanted)
    for key, value in changes.items():
        fields = writer.kv_data[0]
        fields.pop(key.replace("/", "."), None)
        if value is not None:
            fields[key.replace("/", ".")] = gguf.GGUFValue(value, gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if not split else next(iter(sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))))


def _describe(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    width = _width(config)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(_inner(config))
    writer.add_head_count(heads)
    writer.add_head_count_kv(_kv_heads(arch, config))
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", config.get("norm_eps", 1e-6)))
    writer.add_vocab_size(config["vocab_size"])
    if arch not in ("phi3", "deepseek2"):
        writer.add_key_length(of_full_layers(config, "head_dim", width))
        writer.add_value_length(of_full_layers(config, "head_dim", width))
    if arch == "gemma4":
        writer.add_key_length_swa(width)
        writer.add_shared_kv_layers(config["num_kv_shared_layers"])
        writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"])
    if arch == "gemma3n":
        _describe_altup(writer, config)
    _describe_rope(writer, arch, config, width)
    _describe_experts(writer, config)
    if arch == "deepseek2":
        _describe_latent(writer, config)
    if arch == "lfm2":
        writer.add_shortconv_l_cache(config["conv_L_cache"])
    if arch in DELTA:
        _describe_delta(writer, arch, config)
    if arch == "granitehybrid":
        writer.add_ssm_conv_kernel(config["mamba_d_conv"])
        writer.add_ssm_state_size(config["mamba_d_state"])
        writer.add_ssm_group_count(config["mamba_n_groups"])
        writer.add_ssm_inner_size(config["mamba_expand"] * config["hidden_size"])
        writer.add_ssm_time_step_rank(config["mamba_n_heads"])
        writer.add_rope_scaling_finetuned(config["position_embedding_type"] == "rope")
    for key, scale in SCALES.items():
        if key in config:
            getattr(writer, f"add_{scale}")(config[key])
    slides = arch in ("phi3", "gpt-oss") or (
        arch.startswith(("gemma", "olmo", "exaone")) and config.get("sliding_window")
    )
    if slides:
        writer.add_sliding_window(config.get("sliding_window") or 0)
    if slides and config.get("layer_types") and arch not in ("gemma2", "gpt-oss"):
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key):
            getattr(writer, f"add_{key}")(config[key])


def _width(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def _inner(config: dict[str, Any]) -> int | list[int]:
    """LFM2 takes two thirds of what it is given, in whole multiples; some of Gemma 4 are twice as wide in the end."""
    given = config.get("intermediate_size_mlp", config["intermediate_size"])
    if isinstance(given, list):
        return given
    inner = int(given)
    if config.get("use_double_wide_mlp"):
        count, shared = config["num_hidden_layers"], config["num_kv_shared_layers"]
        return [inner] * (count - shared) + [2 * inner] * shared
    if not config.get("block_auto_adjust_ff_dim"):
        return inner
    multiple = config["block_multiple_of"]
    return -(-int(int(2 * inner / 3) * config["block_ffn_dim_multiplier"]) // multiple) * multiple


def _kv_heads(arch: str, config: dict[str, Any]) -> int | list[int]:
    """A number for each layer where some have no attention; latents are one head."""
    heads = config["num_key_value_heads"]
    if arch in ("lfm2", "granitehybrid"):
        return [heads if kind in ("full_attention", "attention") else 0 for kind in config["layer_types"]]
    if arch == "gemma4":
        full = of_full_layers(config, "num_key_value_heads", heads)
        return [heads if kind == "sliding_attention" else full for kind in config["layer_types"]]
    return 1 if arch == "deepseek2" else heads


def _describe_delta(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    heads = config["linear_num_value_heads"]
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_inner_size(config["linear_value_head_dim"] * heads)
    writer.add_full_attention_interval(4)
    linear = [kind == "linear_attention" for kind in config["layer_types"]]
    writer.add_array(f"{arch}.attention.recurrent_layers", linear)
    writer.add_rope_dimension_sections([2, 1, 1, 0])


def _describe_altup(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_altup_active_idx(config["altup_active_idx"])
    writer.add_altup_num_inputs(config["altup_num_inputs"])
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"])
    writer.add_shared_kv_layers(config["num_kv_shared_layers"])
    shares = torch.tensor(config["activation_sparsity_pattern"])
    writer.add_activation_sparsity_scale(torch.special.ndtri(shares).tolist())


def _describe_latent(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    rank, turned = config["kv_lora_rank"], config["qk_rope_head_dim"]
    if config["q_lora_rank"]:
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + turned)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + turned)
    writer.add_value_length_mla(config["v_head_dim"])


def _describe_rope(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any], width: int) -> None:
    rope = config.get("rope_parameters", {})
    if "sliding_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    rope = rope.get("full_attention", rope)
    alpha = rope.get("alpha", 1.0) ** (width / (width - 2))
    writer.add_rope_freq_base(rope["rope_theta"] * alpha)
    turned = config["qk_rope_head_dim"] if arch == "deepseek2" else width * rope.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(turned))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
        if arch in ("deepseek2", "mistral3"):
            writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"] * (0.1 if arch == "deepseek2" else 1.0))
    if "llama_4_scaling_beta" in rope:
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    if rope["rope_type"] == "longrope":
        original = config["original_max_position_embeddings"]
        scale = config["max_position_embeddings"] / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))


def _describe_experts(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    if not (experts := next((config[name] for name in names if config.get(name)), None)):
        return
    keys = {
        **{"moe_intermediate_size": "expert_feed_forward_length", "first_k_dense_replace": "leading_dense_block_count"},
        **{"shared_intermediate_size": "expert_shared_feed_forward_length", "n_shared_experts": "expert_shared_count"},
        **{"shared_expert_intermediate_size": "expert_shared_feed_forward_length", "n_group": "expert_group_count"},
        **{"topk_group": "expert_group_used_count", "routed_scaling_factor": "expert_weights_scale"},
    }
    writer.add_expert_count(experts)
    used = ("num_experts_per_tok", "top_k_experts", "moe_topk")
    writer.add_expert_used_count(next(config[name] for name in used if name in config))
    if "intermediate_size_mlp" in config:
        writer.add_expert_feed_forward_length(config["intermediate_size"])
        writer.add_interleave_moe_layer_step(config["interleave_moe_layer_step"])
    for key, name in keys.items():
        if config.get(key) is not None:
            getattr(writer, f"add_{name}")(config[key])
    if config["architectures"][0] in ("Glm4MoeForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM"):
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
        writer.add_expert_weights_norm(config["norm_topk_prob"])


def _add_tokenizer(writer: gguf.GGUFWriter, directory: Path) -> None:
    """A byte-level BPE; the template and the named tokens are those of the directory."""
    pipeline = json.loads((directory / "tokenizer.json").read_text())
    config = json.loads((directory / "tokenizer_config.json").read_text())
    ids = dict(pipeline["model"]["vocab"]) | {token["content"]: token["id"] for token in pipeline["added_tokens"]}
    special = {token["content"] for token in pipeline["added_tokens"] if token["special"]}
    tokens = sorted(ids, key=ids.__getitem__)
    writer.add_tokenizer_model(BYTE_LEVEL)
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in pipeline["model"]["merges"]])
    for name in ("bos", "eos", "pad"):
        getattr(writer, f"add_{name}_token_id")(ids[config[f"{name}_token"]])
    template = directory / "chat_template.jinja"
    writer.add_chat_template(template.read_text() if template.exists() else config["chat_template"])
