"""GGUF files of tiny checkpoints, written with the `gguf` library as llama.cpp's converter writes them.

    write_gguf(checkpoints.get("gemma3"), tmp_path / "m.gguf", "Q8_0")

Names of tensors and keys are the library's; what the converter does to tensors is done here: rows of Q and K in the
order of interleaved rotary pairs (llama), 1 added to norm weights (gemma), stacked experts, rope factors as tensors.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.quants import quantize
from numpy.typing import NDArray
from safetensors import safe_open

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
}
PERMUTED = ("llama", "smollm3", "granite", "granitemoe", "mistral3")
SCALES = {
    **{"attention_multiplier": "attention_scale", "embedding_multiplier": "embedding_scale"},
    **{"residual_multiplier": "residual_scale", "logits_scaling": "logit_scale"},
}
MODELS = {name: model for model, name in gguf.MODEL_ARCH_NAMES.items()}
BYTE_LEVEL, CONTROL, NORMAL = "gpt2", 3, 1


def write_gguf(directory: Path, path: Path, kind: str = "F32", split: int = 0, **changes: Any) -> Path:
    """kind: type of all matrices whose rows its blocks fill. split: tensors in a file at most; 0 is one file for all.

    changes: metadata under its full name, with "/" for "." and None to leave a key out. Returns the (first) file.
    """
    config = json.loads((directory / "config.json").read_text())
    arch = ARCHITECTURES[config["architectures"][0]]
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    _describe(writer, arch, config)
    _add_tokenizer(writer, directory)
    for name, value in _tensors(directory, arch, config):
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
        writer.add_key_length(_of_full_layers(config, "head_dim", width))
        writer.add_value_length(_of_full_layers(config, "head_dim", width))
    if arch == "gemma4":
        writer.add_key_length_swa(width)
        writer.add_shared_kv_layers(config["num_kv_shared_layers"])
        writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"])
    _describe_rope(writer, arch, config, width)
    _describe_experts(writer, config)
    if arch == "deepseek2":
        _describe_latent(writer, config)
    if arch == "lfm2":
        writer.add_shortconv_l_cache(config["conv_L_cache"])
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


def _of_full_layers(config: dict[str, Any], key: str, default: int) -> int:
    """A size that full layers of Gemma 4 have of their own."""
    if "per_layer_config" not in config:
        return default
    index = str(config["layer_types"].index("full_attention"))
    return config["per_layer_config"].get(index, {}).get(key, default)


def _inner(config: dict[str, Any]) -> int | list[int]:
    """LFM2 takes two thirds of what it is given, in whole multiples; some of Gemma 4 are twice as wide in the end."""
    inner = int(config["intermediate_size"])
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
    if arch == "lfm2":
        return [0 if kind == "conv" else heads for kind in config["layer_types"]]
    if arch == "gemma4":
        full = _of_full_layers(config, "num_key_value_heads", heads)
        return [heads if kind == "sliding_attention" else full for kind in config["layer_types"]]
    return 1 if arch == "deepseek2" else heads


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
    writer.add_expert_used_count(config.get("num_experts_per_tok", config.get("top_k_experts")))
    for key, name in keys.items():
        if config.get(key) is not None:
            getattr(writer, f"add_{name}")(config[key])
    if config["architectures"][0] in ("Glm4MoeForCausalLM", "DeepseekV3ForCausalLM"):
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


def _tensors(directory: Path, arch: str, config: dict[str, Any]) -> list[tuple[str, NDArray[np.float32]]]:
    with safe_open(directory / "model.safetensors", "pt") as file:
        found = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    names = gguf.get_tensor_name_map(MODELS[arch], config["num_hidden_layers"])
    tensors: dict[str, torch.Tensor] = {}
    for name, value in _converted(_stacked(found), config).items():
        if arch in PERMUTED and (".q_proj." in name or ".k_proj." in name):
            heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            value = value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        if arch in ("gemma2", "gemma3") and name.endswith("norm.weight"):
            value = value + 1
        name = name.replace("e_score_correction_bias", "e_score_correction.bias")
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None or name.endswith(".scale"), name
        tensors[known or name] = value
    rope = config.get("rope_parameters", {})
    if arch == "gemma4":
        half = _of_full_layers(config, "head_dim", 0) // 2
        turning = int(half * rope["full_attention"]["partial_rotary_factor"])
        tensors["rope_freqs.weight"] = torch.tensor([1.0] * turning + [1e30] * (half - turning))
    if rope.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = _llama3_factors(rope, config)
    if rope.get("rope_type") == "longrope":
        for which in ("long", "short"):
            tensors[f"rope_factors_{which}.weight"] = torch.tensor(rope[f"{which}_factor"])
    return [(name, np.ascontiguousarray(value.numpy(), dtype=np.float32)) for name, value in tensors.items()]


def _converted(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What converters split, turn or rename."""
    result: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        head, _, part = name.rpartition(".mlp.experts.")
        if "router.scale" in name or "per_expert_scale" in name:
            layer = name.split(".")[2]
            result[f"blk.{layer}.ffn_{'gate_inp' if 'router.scale' in name else 'down_exps'}.scale"] = value
            continue
        if name.endswith(("layer_scalar", "experts.gate_up_proj", "experts.down_proj")) and not head:
            result[f"{name}.weight"] = value
            continue
        if part.removesuffix("_bias") in ("gate_up_proj", "down_proj"):  # gpt-oss: gate and up take turns
            kind = "bias" if part.endswith("_bias") else "weight"
            value = value if kind == "bias" else value.transpose(1, 2)
            parts = {"gate_proj": value[:, ::2], "up_proj": value[:, 1::2]}
            for module, rows in parts.items() if "gate_up" in part else {"down_proj": value}.items():
                result[f"{head}.mlp.experts.{module}.{kind}"] = rows
        elif name.endswith("block_sparse_moe.input_linear.weight"):
            inner = config["intermediate_size"]
            head = name.removesuffix("input_linear.weight")
            result |= {f"{head}experts.w1.weight": value[:, :inner], f"{head}experts.w3.weight": value[:, inner:]}
        elif name.endswith("shared_mlp.input_linear.weight"):
            gate, up = value.chunk(2)
            head = name.replace("shared_mlp.input_linear.weight", "mlp.shared_expert")
            result |= {f"{head}.gate_proj.weight": gate, f"{head}.up_proj.weight": up}
        elif name.endswith("kv_b_proj.weight"):
            sizes = [config["qk_nope_head_dim"], config["v_head_dim"]]
            keys, values = value.view(-1, sum(sizes), value.shape[-1]).split(sizes, dim=1)
            result[name.replace("kv_b_proj", "k_b_proj")] = keys.transpose(1, 2)
            result[name.replace("kv_b_proj", "v_b_proj")] = values
        elif name.endswith("conv.conv.weight"):
            result[name] = value.squeeze(1)
        else:
            result[f"{name}.weight" if name.endswith("sinks") else name] = value
    return result


def _stacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts of a layer as one tensor: ...experts.0.w1.weight, ...experts.1.w1.weight -> ...experts.w1.weight"""
    stacks: dict[str, dict[int, torch.Tensor]] = {}
    rest = {}
    for name, value in tensors.items():
        before, _, after = name.partition(".experts.")
        if not after[:1].isdigit():
            rest[name] = value
            continue
        number, _, module = after.partition(".")
        stacks.setdefault(f"{before}.experts.{module}", {})[int(number)] = value
    return rest | {name: torch.stack([of[i] for i in sorted(of)]) for name, of in stacks.items()}


def _llama3_factors(rope: dict[str, Any], config: dict[str, Any]) -> torch.Tensor:
    """What each frequency is divided by, as the converter computes it from the wavelengths."""
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    waves = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    smooth = ((original / waves - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - smooth) / factor + smooth)
