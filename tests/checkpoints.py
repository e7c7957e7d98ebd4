"""Tiny random checkpoints of every model family, written by Hugging Face transformers itself.

    checkpoints.get("gemma3", seed=1, sliding_window=8) -> directory with config.json, weights, tokenizer

The same arguments give the same bytes, made once per pytest session. Weights are drawn wide enough that logits are far
from uniform, and norms and biases are drawn too, so that nothing in a layer can be left out unnoticed.
transformers takes seconds to import, so only making a checkpoint does.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

VOCAB = 300
ORIGINAL = "original_max_position_embeddings"
BOS, EOS, SPECIAL = 0, 2, ("<|begin|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "the cache holds keys and values of every token the model has read",
    "a block is open and then it is sealed; the block table says where the blocks are",
    "the quick brown fox jumps over the lazy dog and then the other dog",
    "ein Block ist offen und dann versiegelt, grün und schön",
]

_BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": 3,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 8, "num_hidden_layers": 4}
_GEMMA4 = {
    **{"head_dim": 16, "global_head_dim": 32, "sliding_window": 8, "num_hidden_layers": 4},
    **{"layer_types": ["sliding_attention", "full_attention"] * 2, "final_logit_softcapping": 3.0},
    **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB},
}
_LATENT = {
    **{"num_key_value_heads": 4, "kv_lora_rank": 24, "q_lora_rank": None, "qk_rope_head_dim": 8},
    **{"qk_nope_head_dim": 16, "v_head_dim": 12, "first_k_dense_replace": 1, "moe_intermediate_size": 32},
    **{"n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2},
}
YARN = {
    **{"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128},
    **{"mscale": 1.0, "mscale_all_dim": 0.7, "beta_fast": 32, "beta_slow": 1},
}
_ROUTED = {
    **{"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 32},
    **{"routed_scaling_factor": 1.5, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
}
_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.4],
    "long_factor": [1.5, 2.0, 3.0, 4.0],
}

_LFM2 = {
    **{"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 32},
    **{"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
}
_DELTA = {
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 12},
    **{"head_dim": 32, "linear_conv_kernel_dim": 4},
    **{"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
}

# family -> (architecture, what differs from _BASE)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama2": ("Llama", {"num_key_value_heads": 4}),
    "llama3": ("Llama", {"rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama_biased": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    "mistral": ("Mistral", {"sliding_window": 12}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2", {}),
    "qwen2_sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3_moe": (
        "Qwen3Moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
            "head_dim": 16,
        },
    ),
    "gemma2": ("Gemma2", {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": (
        "Gemma3",
        {
            **_GEMMA,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1_000_000.0},
            },
        },
    ),
    "gemma4": ("Gemma4", {**_GEMMA4, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}),
    "gemma4_moe": (
        "Gemma4",
        {
            **{**_GEMMA4, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
            **{"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
        },
    ),
    "gemma3n": (
        "Gemma3n",
        {
            **{"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 4, "num_kv_shared_layers": 2},
            **{"layer_types": ["sliding_attention", "full_attention"] * 2, "final_logit_softcapping": 3.0},
            **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB - 50, "laurel_rank": 6},
            **{"activation_sparsity_pattern": [0.7, 0.0, 0.7, 0.0], "altup_active_idx": 1, "altup_num_inputs": 3},
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 14}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 11}),
    "granite": (
        "Granite",
        {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.4, "attention_multiplier": 0.4},
    ),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {"sliding_window": 9, "num_hidden_layers": 4}),
    "exaone4": ("Exaone4", {"sliding_window": 9, "num_hidden_layers": 4, "sliding_window_pattern": 2}),
    "deepseek_v2": ("DeepseekV2", {**_LATENT, "n_routed_experts": 4, "topk_method": "greedy"}),
    "deepseek_v3": ("DeepseekV3", {**_LATENT, "q_lora_rank": 20, "rope_parameters": YARN}),
    "glm4_moe_lite": ("Glm4MoeLite", {**_LATENT, "q_lora_rank": 20, "n_group": 1, "topk_group": 1}),
    "llama4": (
        "Llama4",
        {
            **{"head_dim": 16, "no_rope_layers": [1, 0, 1], "attention_chunk_size": 10, "floor_scale": 8},
            **{"interleave_moe_layer_step": 2, "intermediate_size_mlp": 80, "num_local_experts": 4},
            **{"num_experts_per_tok": 2, "rope_parameters": _LLAMA3_ROPE},
        },
    ),
    "glm": ("Glm", {"head_dim": 16, "attention_bias": True}),
    "glm4": ("Glm4", {"head_dim": 16, "attention_bias": True}),
    "glm4_moe": ("Glm4Moe", {**_ROUTED, "use_qk_norm": True, "attention_bias": True}),
    "seed_oss": ("SeedOss", {"head_dim": 24, "attention_bias": True, "attention_out_bias": False}),
    "ernie4_5": ("Ernie4_5", {"head_dim": 16, "use_bias": True, "tie_word_embeddings": False}),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "granitemoe": (
        "GraniteMoeShared",
        {
            **{"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 40},
            **{"embedding_multiplier": 3.0, "logits_scaling": 2.0, "attention_multiplier": 0.4},
        },
    ),
    "ministral3": (
        "Ministral3",
        {"head_dim": 16, "rope_parameters": {**YARN, ORIGINAL: 16, "llama_4_scaling_beta": 0.1}},
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        {
            **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [1]},
            "shared_expert_intermediate_size": 40,
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            **{"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 9},
            **{"swiglu_limit": 1.5, "rope_parameters": {**YARN, "truncate": False}},
        },
    ),
    "hunyuan_v1": (
        "HunYuanDenseV1",
        {
            "head_dim": 24,
            "rope_parameters": {"rope_type": "dynamic", "factor": 1.0, "rope_theta": 10_000.0, "alpha": 50.0},
        },
    ),
    "lfm2": ("Lfm2", {**_LFM2, "conv_bias": True}),
    "qwen3_next": (
        "Qwen3Next",
        {
            **{**_DELTA, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32},
            **{"shared_expert_intermediate_size": 40, "mlp_only_layers": [1]},
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
        },
    ),
    "qwen3_5": ("Qwen3_5", _DELTA),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        {
            **{"layer_types": ["linear_attention", "full_attention", "linear_attention"], "num_local_experts": 0},
            **{"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 12, "mamba_n_groups": 2, "mamba_expand": 2},
            **{"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.4},
            **{"attention_multiplier": 0.4, "shared_intermediate_size": 96, "position_embedding_type": "nope"},
        },
    ),
    "granitemoehybrid_experts": (
        "GraniteMoeHybrid",
        {
            **{"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2},
            **{"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 12, "num_local_experts": 4},
            **{"num_experts_per_tok": 3, "shared_intermediate_size": 40, "position_embedding_type": "rope"},
            **{"intermediate_size": 32, "mamba_proj_bias": True},
        },
    ),
    "hunyuan_v1_moe": ("HunYuanMoEV1", {"head_dim": 16, "num_experts": 4, "moe_topk": 2}),
    "phi3_long": (
        "Phi3",
        {
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 32,
            "partial_rotary_factor": 0.5,
            "rope_parameters": _LONGROPE,
        },
    ),
}

ADAPTERS = frozenset(
    {"hunyuan_v1_moe"}
    | {"glm", "glm4", "glm4_moe", "seed_oss", "ernie4_5", "olmoe", "granitemoe", "ministral3", "qwen2_moe"}
)
"""Families made of parts that others prove in every precision and batch: their logits in float32 prove the adapter."""
PROVEN_IN_FULL = tuple(family for family in FAMILIES if family not in ADAPTERS)


class Checkpoints:
    """Checkpoint directories under `root`, each made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, family: str, seed: int = 0, dtype: str = "float32", **overrides: Any) -> Path:
        """overrides: further keys of config.json. The directory is shared: copy it before changing anything in it."""
        key = hashlib.sha256(json.dumps([seed, dtype, overrides], sort_keys=True).encode()).hexdigest()[:12]
        directory = self.root / f"{family}-{key}"
        if not directory.exists():
            make_checkpoint(directory, family, seed, dtype, **overrides)
        return directory


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


def make_checkpoint(directory: Path, family: str, seed: int = 0, dtype: str = "float32", **overrides: Any) -> None:
    """Model, generation config and tokenizer of a family of `FAMILIES` with random weights."""
    import transformers

    architecture, differences = FAMILIES[family]
    config = getattr(transformers, config_class(architecture))(**{**_BASE, **differences, **overrides})
    save(getattr(transformers, f"{architecture}ForCausalLM")(config), directory, seed, dtype)


WITH_MORE = ("Gemma3", "Gemma3n", "Gemma4", "Llama4", "Qwen3_5")


def config_class(architecture: str) -> str:
    """Of the language model alone, where a checkpoint may also see."""
    return f"{architecture}{'TextConfig' if architecture in WITH_MORE else 'Config'}"


def make_gemma3_with_vision(directory: Path, seed: int = 0) -> None:
    """The multimodal layout: the language model under a prefix, its config under `text_config`, a vision tower."""
    import transformers

    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    keys: dict[str, Any] = {
        "text_config": {**_BASE, **FAMILIES["gemma3"][1]},
        "vision_config": {**vision, "image_size": 28, "patch_size": 14},
        "mm_tokens_per_image": 4,
        "bos_token_id": BOS,
        "eos_token_id": [EOS, 3],
    }
    config = transformers.Gemma3Config(**keys)
    save(transformers.Gemma3ForConditionalGeneration(config), directory, seed, "float32")


def make_with_vision(name: str, directory: Path) -> Any:
    """The same of another family that can see, Gemma4, Mistral3 or Qwen3VL; the model of transformers itself."""
    import transformers

    tiny = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    texts: dict[str, dict[str, Any]] = {
        "Gemma4": FAMILIES["gemma4"][1],
        "Mistral3": {"model_type": "mistral", "head_dim": 16, "sliding_window": None},
        "Qwen3VL": {
            **{"head_dim": 16, "tie_word_embeddings": False},
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 2, 2]},
        },
    }
    sights: dict[str, dict[str, Any]] = {
        "Gemma4": {**tiny, "num_key_value_heads": 2, "head_dim": 16},
        "Mistral3": {**tiny, "model_type": "pixtral", "image_size": 28, "patch_size": 14, "head_dim": 16},
        "Qwen3VL": {"hidden_size": 32, "intermediate_size": 32, "depth": 1, "num_heads": 2, "out_hidden_size": 64},
    }
    keys = {"text_config": {**_BASE, **texts[name]}, "vision_config": sights[name], "tie_word_embeddings": False}
    config = getattr(transformers, f"{name}Config")(**keys)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    save(model, directory, 0, "float32")
    return model


def save(model: Any, directory: Path, seed: int, dtype: str) -> None:
    """Randomises and writes the model with a tokenizer."""
    randomise(model, seed)
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    save_tokenizer(directory)


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Matrices enlarge what passes through them, the output matrix most; norms and biases are drawn as well."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.fill_(1.0 + 0.1 * torch.empty(()).normal_(generator=generator))
        for name, parameter in model.named_parameters():
            noise = torch.empty(parameter.shape).normal_(generator=generator)
            if "norm" in name or name.endswith("scale"):
                parameter.add_(0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "embed_tokens" in name:  # Gemma multiplies embeddings by sqrt(hidden_size)
                parameter.copy_((0.1 if "Gemma" in type(model).__name__ else 0.3) * noise)
            else:
                gain = 2.5 if "lm_head" in name else 1.3
                parameter.copy_(gain / math.sqrt(parameter.shape[-1]) * noise)


def save_tokenizer(directory: Path) -> None:
    """A byte-level BPE of exactly VOCAB tokens with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    assert tokenizer.get_vocab_size() == VOCAB
    bos, _, eos, pad = SPECIAL
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, additional_special_tokens=[SPECIAL[1]]
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(directory)
