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
    "Phi3ForCausalLM": "phi3",
}
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
    width = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if arch != "phi3":
        writer.add_key_length(width)
        writer.add_value_length(width)
    rope = config.get("rope_parameters", {})
    if "sliding_attention" in rope:
        writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(width * rope.get("partial_rotary_factor", 1.0)))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "longrope":
        original = config["original_max_position_embeddings"]
        scale = config["max_position_embeddings"] / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
    if arch == "phi3" or (arch.startswith("gemma") and config.get("sliding_window")):
        writer.add_sliding_window(config.get("sliding_window") or 0)
    if config.get("layer_types") and arch == "gemma3":
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key):
            getattr(writer, f"add_{key}")(config[key])
    if experts := config.get("num_experts", config.get("num_local_experts")):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
        if "moe_intermediate_size" in config:
            writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


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
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config["num_hidden_layers"])
    tensors: dict[str, torch.Tensor] = {}
    for name, value in _stacked(found).items():
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            value = value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            value = value + 1
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None, name
        tensors[known] = value
    rope = config.get("rope_parameters", {})
    if rope.get("rope_type") == "llama3":
        tensors["rope_freqs.weight"] = _llama3_factors(rope, config)
    if rope.get("rope_type") == "longrope":
        for which in ("long", "short"):
            tensors[f"rope_factors_{which}.weight"] = torch.tensor(rope[f"{which}_factor"])
    return [(name, np.ascontiguousarray(value.numpy(), dtype=np.float32)) for name, value in tensors.items()]


def _stacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts of a layer as one tensor: ...experts.0.w1.weight, ...experts.1.w1.weight -> ...experts.w1.weight"""
    stacks: dict[str, dict[int, torch.Tensor]] = {}
    rest = {}
    for name, value in tensors.items():
        before, _, after = name.partition(".experts.")
        if not after:
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
