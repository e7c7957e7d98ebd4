"""config.json files of well-known models, reduced to the keys that size depends on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-5,
}
_LLAMA_31 = {**_LLAMA, "num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 131_072}
_QWEN: dict[str, Any] = {"hidden_act": "silu", "torch_dtype": "bfloat16", "vocab_size": 151_936}

LLAMA_31_8B = {
    **_LLAMA_31,
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "intermediate_size": 14_336,
}
LLAMA_31_70B = {
    **_LLAMA_31,
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "intermediate_size": 28_672,
}
LLAMA_2_7B = {
    **_LLAMA,
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "intermediate_size": 11_008,
    "vocab_size": 32_000,
    "max_position_embeddings": 4096,
}
QWEN3_8B = {
    **_QWEN,
    "architectures": ["Qwen3ForCausalLM"],
    "num_hidden_layers": 36,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12_288,
    "max_position_embeddings": 40_960,
}
QWEN25_05B = {
    **_QWEN,
    "architectures": ["Qwen2ForCausalLM"],
    "num_hidden_layers": 24,
    "hidden_size": 896,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "tie_word_embeddings": True,
    "max_position_embeddings": 32_768,
}
DEEPSEEK_V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 61,
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "first_k_dense_replace": 3,
    "intermediate_size": 18_432,
    "vocab_size": 129_280,
    "max_position_embeddings": 163_840,
}
GEMMA4_E2B: dict[str, Any] = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "model_type": "gemma4",
    "dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma4_text",
        "num_hidden_layers": 35,
        "num_kv_shared_layers": 20,
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "use_double_wide_mlp": True,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "global_head_dim": 512,
        "sliding_window": 512,
        "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
        "vocab_size": 262_144,
        "vocab_size_per_layer_input": 262_144,
        "hidden_size_per_layer_input": 256,
        "max_position_embeddings": 131_072,
    },
}
AFM_3B: dict[str, Any] = {
    "model_type": "afm7",
    "num_layers": 56,
    "num_kv_reuse_layers": 21,
    "hidden_dim": 2048,
    "hidden_dim_scale_factor": 3.25,
    "num_heads": 16,
    "num_kv_heads": 2,
    "vocab_size": 153_600,
}


def write(directory: Path, config: dict[str, Any], **changes: Any) -> Path:
    """The config as a file; None removes a key."""
    values = {key: value for key, value in {**config, **changes}.items() if value is not None}
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "config.json"
    path.write_text(json.dumps(values))
    return path
