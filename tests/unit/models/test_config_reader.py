"""config.json -> ModelSpec: what published checkpoints write, and what the reader says when it cannot follow."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvtrove.kv.formats.dense import dense
from kvtrove.models.cache import cache_spec
from kvtrove.models.config_reader import read_spec
from kvtrove.models.families import REGISTRY
from kvtrove.models.spec import ModelError, ModelSpec

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 4,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}


def read(directory: Path, config: Any, generation: Any = None) -> ModelSpec:
    (directory / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return read_spec(directory)


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def windows(spec: ModelSpec) -> list[int | None]:
    return [layer.cache.retention.kept() for layer in spec.layers]


def test_llama(tmp_path: Path) -> None:
    spec = read(tmp_path, LLAMA)
    assert (spec.family, spec.architecture, spec.dtype) == ("llama", "LlamaForCausalLM", "bfloat16")
    assert (spec.num_layers, spec.num_heads, spec.layers[0].cache.heads, spec.layers[0].cache.k_dim) == (4, 32, 8, 128)
    assert (spec.layers[0].rope.theta, spec.layers[0].rope.rotary_dim) == (500000.0, 128)
    assert (spec.max_position, spec.norm_eps, spec.query_scale) == (8192, 1e-5, 128**-0.5)
    assert (spec.eos_token_ids, spec.bos_token_id) == ((128001,), 128000)
    assert not any((spec.tie_embeddings, spec.attention_bias, spec.mlp_bias, spec.qk_norm, spec.norms != "pre"))


@pytest.mark.parametrize("architectures", [None, []])
@pytest.mark.parametrize(("model_type", "family"), [("llama", "llama"), ("qwen3", "qwen3"), ("mixtral", "mixtral")])
def test_a_model_type_stands_for_its_architecture(
    tmp_path: Path, architectures: Any, model_type: str, family: str
) -> None:
    assert read(tmp_path, LLAMA | {"architectures": architectures, "model_type": model_type}).family == family


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8-sig")
    assert read_spec(tmp_path).family == "llama"


@pytest.mark.parametrize(
    ("own", "generation", "expected"),
    [
        (2, {"eos_token_id": [2, 5]}, (2, 5)),
        (2, {"eos_token_id": 7}, (7,)),
        ([2, 3], {}, (2, 3)),
        (None, None, ()),
        (0, None, (0,)),
    ],
)
def test_end_tokens(tmp_path: Path, own: Any, generation: Any, expected: tuple[int, ...]) -> None:
    assert read(tmp_path, LLAMA | {"eos_token_id": own}, generation).eos_token_ids == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"torch_dtype": None, "dtype": "float16"}, "float16"),
        ({"torch_dtype": "torch.bfloat16"}, "bfloat16"),
        ({"torch_dtype": None}, "float32"),
        ({"torch_dtype": "auto"}, "float32"),
    ],
)
def test_dtype_under_either_name(tmp_path: Path, keys: dict[str, Any], expected: str) -> None:
    assert read(tmp_path, LLAMA | keys).dtype == expected


ALTERNATING = ["full_attention", "sliding_attention"] * 2
SLIDES = {"use_sliding_window": True, "sliding_window": 128}


@pytest.mark.parametrize(
    ("architecture", "keys", "expected"),
    [
        ("MistralForCausalLM", {"sliding_window": 4096}, [4096] * 4),
        ("MistralForCausalLM", {"sliding_window": None}, [None] * 4),
        ("MistralForCausalLM", {"sliding_window": 0}, [None] * 4),
        ("MistralForCausalLM", {}, [4096] * 4),
        ("MistralForCausalLM", {"sliding_window": 8192}, [None] * 4),  # no context reaches it
        ("MistralForCausalLM", {"sliding_window": 16, "layer_types": ALTERNATING}, [None, 16] * 2),
        ("MixtralForCausalLM", {}, [None] * 4),
        ("Qwen2ForCausalLM", {"sliding_window": 128}, [None] * 4),  # windows are switched off
        ("Qwen2ForCausalLM", SLIDES | {"max_window_layers": 3}, [None, None, None, 128]),
        ("Qwen2ForCausalLM", SLIDES | {"max_window_layers": 0}, [128] * 4),
        ("Qwen3ForCausalLM", SLIDES | {"max_window_layers": 2}, [None, None, 128, 128]),
        ("Gemma2ForCausalLM", {"sliding_window": 64}, [64, None] * 2),
        ("Gemma3ForCausalLM", {"sliding_window": 64, "sliding_window_pattern": 3}, [64, 64, None, 64]),
        ("Gemma3ForCausalLM", {"sliding_window": 64}, [64] * 4),  # the sixth would be full
        ("Phi3ForCausalLM", {"sliding_window": 2047}, [2047] * 4),
        ("Phi3ForCausalLM", {}, [None] * 4),
    ],
)
def test_windows(tmp_path: Path, architecture: str, keys: dict[str, Any], expected: list[int | None]) -> None:
    assert windows(read(tmp_path, LLAMA | {"architectures": [architecture]} | keys)) == expected


def test_gemma2(tmp_path: Path) -> None:
    config = without(LLAMA, "eos_token_id", "bos_token_id") | {"architectures": ["Gemma2ForCausalLM"], "head_dim": 256}
    spec = read(tmp_path, config | {"query_pre_attn_scalar": 144, "hidden_size": 4608, "attn_logit_softcapping": 50.0})
    assert (spec.attention_softcap, spec.logit_softcap, spec.query_scale) == (50.0, 30.0, 1 / 12)
    assert (spec.embed_scale, spec.norm_offset, spec.norms, spec.tie_embeddings) == (4608**0.5, 1.0, "sandwich", True)
    assert (spec.activation, spec.layers[0].cache.k_dim, spec.eos_token_ids) == ("gelu_tanh", 256, (1,))
    assert read(tmp_path, config | {"final_logit_softcapping": None}).logit_softcap is None


def test_gemma3_text_part_fills_in_what_multimodal_configs_leave_out(tmp_path: Path) -> None:
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "torch_dtype": "bfloat16",
        "text_config": text,
    }
    spec = read(tmp_path, config)
    assert (spec.vocab_size, spec.num_heads, spec.layers[0].cache.heads, spec.layers[0].cache.k_dim) == (
        262208,
        8,
        4,
        256,
    )
    assert (spec.dtype, spec.eos_token_ids, spec.qk_norm, spec.max_position) == ("bfloat16", (1, 106), "head", 131072)
    local, full = spec.layers[0], spec.layers[5]
    assert (local.cache.retention.kept(), local.rope.theta, local.rope.scaling) == (1024, 10_000.0, None)
    assert (full.cache.retention.kept(), full.rope.theta, full.rope.scaling) == (None, 1_000_000.0, "linear")


def test_experts(tmp_path: Path) -> None:
    config = LLAMA | {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 128, "num_experts_per_tok": 8}
    spec = read(tmp_path, config | {"moe_intermediate_size": 768, "norm_topk_prob": True, "decoder_sparse_step": 2})
    assert [layer.moe is not None for layer in spec.layers] == [False, True, False, True]
    moe = spec.layers[1].moe
    assert moe is not None
    assert (moe.num_experts, moe.top_k, moe.intermediate_size, moe.norm_topk) == (128, 8, 768, True)


@pytest.mark.parametrize(
    ("scaling", "served", "longest"),
    [
        ({"type": "linear", "factor": 4.0}, 32768, 32768),
        ({"type": "dynamic", "factor": 4.0}, 8192, 32768),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384, 16384),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096.0}, 16384, 16384),
        ({"type": "yarn", "factor": 4.0}, 8192, 8192),  # the length is the stretched one already
        ({"type": "default"}, 8192, 8192),
    ],
)
def test_longest_context(tmp_path: Path, scaling: dict[str, Any], served: int, longest: int) -> None:
    spec = read(tmp_path, LLAMA | {"rope_scaling": scaling})
    assert (spec.max_position, spec.longest_context) == (served, longest)


QWEN3, PHI3 = {"architectures": ["Qwen3ForCausalLM"]}, {"architectures": ["Phi3ForCausalLM"]}
GEMMA2, GEMMA3 = {"architectures": ["Gemma2ForCausalLM"]}, {"architectures": ["Gemma3ForConditionalGeneration"]}
SCALED = {"type": "longrope", "short_factor": [1.0] * 64, "long_factor": [1.0] * 64}
GEMMA3N = {"architectures": ["Gemma3nForCausalLM"], "num_kv_shared_layers": 0}
BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"architectures": ["LLamaForCausalLM"]},
        r"'LLamaForCausalLM' is not supported \(did you mean 'LlamaForCausalLM'\?\); supported: DeepseekV2.*Qwen3Moe",
    ),
    ({"architectures": ["MambaForCausalLM"]}, "'MambaForCausalLM' is not supported.*; supported: "),
    ({"architectures": []}, "'architectures' is missing and 'model_type' is None; add one, for example"),
    ({"architectures": None, "model_type": "mamba"}, "'architectures' is missing and 'model_type' is 'mamba'"),
    ({"hidden_size": None}, "'hidden_size' is missing"),
    ({"hidden_size": "4096"}, "'hidden_size' is '4096', expected a whole number of at least 1"),
    ({"num_hidden_layers": 0}, "'num_hidden_layers' is 0, expected a whole number of at least 1"),
    ({"num_key_value_heads": 5}, "'num_attention_heads' 32 is not a multiple of 'num_key_value_heads' 5"),
    ({"rms_norm_eps": True}, "'rms_norm_eps' is True, expected a number"),
    ({"attention_bias": "yes"}, "'attention_bias' is 'yes', expected true or false"),
    ({"hidden_act": "sillu"}, r"'hidden_act' 'sillu' is not supported \(did you mean 'silu'\?\); supported: silu, "),
    ({"torch_dtype": "float8_e4m3fn"}, "dtype 'float8_e4m3fn' is not supported; supported: float32, float16, bfloat16"),
    ({"quantization_config": {"quant_method": "hqq"}}, r"quantised weights \(hqq\) are not supported"),
    ({"eos_token_id": "</s>"}, "'eos_token_id' is '</s>', expected a token id or a list of them"),
    ({"head_dim": 7}, "even part of the head, got 7 of 7"),
    ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor' 0.5 is not supported for this architecture"),
    (
        {"rope_scaling": {"type": "yarm", "factor": 2.0}},
        r"rope_scaling: rope type 'yarm' is not supported \(did you mean 'yarn'\?\); "
        "supported: default, linear, dynamic, llama3, yarn, longrope",
    ),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling: 'factor' is missing"),
    ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "'factor' is 0.5, expected at least 1"),
    ({"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}, "'high_freq_factor' is missing"),
    ({"rope_parameters": {"full_attention": None, "sliding_attention": {}}}, "'full_attention' is missing"),
    (GEMMA2 | {"use_bidirectional_attention": True}, "'use_bidirectional_attention' is not supported"),
    (QWEN3 | {"layer_types": ["full_attention"]}, "'layer_types' has 1 entries, expected 'num_hidden_layers' = 4"),
    (QWEN3 | {"layer_types": ["linear_attention"] * 4}, "layer type 'linear_attention' is not supported"),
    (QWEN3 | {"layer_types": ["sliding_attention"] * 4}, "sliding_attention layers, but 'sliding_window' is missing"),
    (PHI3 | {"rope_scaling": SCALED | {"short_factor": [1.0] * 3}}, "'short_factor' has 3 numbers, expected 64"),
    (PHI3 | {"rope_scaling": SCALED | {"long_factor": None}}, "'long_factor' is None, expected a list of 64 numbers"),
    (GEMMA3N | {"num_kv_shared_layers": 4}, "'num_kv_shared_layers' 4 leaves no sliding_attention layer"),
    (GEMMA3N | {"altup_active_idx": 4}, "'altup_active_idx' 4 is none of 'altup_num_inputs' 4"),
    (
        GEMMA3N | {"activation_sparsity_pattern": [0.9]},
        "'activation_sparsity_pattern' is .*, expected a number or a list",
    ),
    (
        {"architectures": ["YocoForCausalLM"], "num_self_decoder_layers": 4},
        "'num_self_decoder_layers' 4 leaves none",
    ),
    (
        {"architectures": ["MlkvForCausalLM"], "num_key_value_layers": 3},
        "'num_key_value_layers' 3 does not divide",
    ),
    (
        {"architectures": ["DeepseekV3ForCausalLM"], "index_topk": 64},
        "'index_topk': sparse attention by an indexer",
    ),
    ({"architectures": ["OlmoeForCausalLM"], "clip_qkv": 8.0}, "'clip_qkv' is not supported"),
    ({"architectures": ["NemotronHForCausalLM"]}, "'NemotronHForCausalLM' is not supported"),
    ({"architectures": ["Phi4FlashForCausalLM"]}, "'Phi4FlashForCausalLM' is not supported"),
    (GEMMA3, "'text_config' is missing"),
    (GEMMA3 | {"text_config": 3}, "'text_config' is 3, expected an object"),
]


@pytest.mark.parametrize(("keys", "message"), BAD, ids=lambda value: str(value)[:60])
def test_errors_name_the_file_and_the_key(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        read(tmp_path, LLAMA | keys)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"architectures": [', "cannot be read as JSON"),
        ("[1, 2]", "holds a list, expected a JSON object"),
        ("\x00", "cannot be read as JSON"),
    ],
)
def test_a_broken_config_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"{re.escape(str(tmp_path))}/config.json: {message}"):
        read(tmp_path, text)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: the file is missing"):
        read_spec(tmp_path)
    with pytest.raises(ModelError, match="not a directory; give the folder"):
        read_spec(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"generation_config\.json: 'eos_token_id' is \['x'\]"):
        read(tmp_path, LLAMA, {"eos_token_id": ["x"]})


def test_every_architecture_reads_the_common_keys(tmp_path: Path) -> None:
    for architecture in REGISTRY:
        experts = {"num_experts": 4, "moe_topk": 2} if "HunYuanMoE" in architecture else {}  # it has no usual numbers
        common = LLAMA | {"num_kv_shared_layers": 0}  # Gemma 3n shares 15 without it
        config = common | experts | {"architectures": ["SomethingElse", architecture], "text_config": common}
        assert read(tmp_path, config).architecture == architecture


def test_layers_without_positions(tmp_path: Path) -> None:
    """SmolLM3 rotates three of four layers; EXAONE 4 its sliding ones; both serve their whole context."""
    spec = read(tmp_path, {**LLAMA, "architectures": ["SmolLM3ForCausalLM"], "rope_scaling": None})
    assert [layer.rope.rotary_dim for layer in spec.layers] == [128, 128, 128, 0]
    assert spec.tie_embeddings
    assert spec.max_position == LLAMA["max_position_embeddings"]
    exaone = {**LLAMA, "architectures": ["Exaone4ForCausalLM"], "sliding_window": 64, "rope_scaling": None}
    spec = read(tmp_path, {**exaone, "sliding_window_pattern": "LG"})
    assert [(layer.cache.retention.kept(), layer.rope.rotary_dim) for layer in spec.layers] == [
        (64, 128),
        (None, 0),
    ] * 2
    spec = read(tmp_path, {**exaone, "sliding_window": None})
    assert {(layer.cache.retention.kept(), layer.rope.rotary_dim) for layer in spec.layers} == {(None, 128)}
    with pytest.raises(ModelError, match=r"'no_rope_layers' is \[1, 0\], expected 4 zeros and ones"):
        read(tmp_path, {**LLAMA, "architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1, 0]})


def test_latent_attention_caches_one_vector_for_all_heads(tmp_path: Path) -> None:
    """DeepSeek V3: 576 values a token and layer, 70,272 bytes in all; scores are scaled by YaRN's temperature."""
    config = {
        **{"architectures": ["DeepseekV3ForCausalLM"], "vocab_size": 129_280, "hidden_size": 7168},
        **{"intermediate_size": 18_432, "num_hidden_layers": 61, "num_attention_heads": 128, "q_lora_rank": 1536},
        **{"max_position_embeddings": 163_840, "torch_dtype": "bfloat16", "hidden_act": "silu"},
        "rope_scaling": {
            **{"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
            **{"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1},
        },
    }
    spec = read(tmp_path, config)
    cache = cache_spec(spec, "bfloat16", 32)
    assert cache.block_bytes == 32 * 70_272
    assert spec.query_scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)
    assert [layer.moe is None for layer in spec.layers[:5]] == [True, True, True, False, False]
    with pytest.raises(ModelError, match="'n_routed_experts' 256 is not a multiple of 'n_group' 7"):
        read(tmp_path, {**config, "n_group": 7})
    with pytest.raises(ModelError, match="'index_head_dim': sparse attention by an indexer is not supported"):
        read(tmp_path, {**config, "index_head_dim": 128})
    with pytest.raises(ModelError, match="'topk_method' 'noaux_tc' is not supported"):
        read(tmp_path, {**config, "architectures": ["DeepseekV2ForCausalLM"], "topk_method": "noaux_tc"})


def test_gpt_oss_20b_as_published(tmp_path: Path) -> None:
    """Quantised experts are read; what the file leaves out is the default of transformers; the dtype is bfloat16."""
    config = {
        **{"architectures": ["GptOssForCausalLM"], "attention_bias": True, "head_dim": 64, "hidden_size": 2880},
        **{"intermediate_size": 2880, "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24},
        **{"num_key_value_heads": 8, "num_local_experts": 32, "sliding_window": 128, "vocab_size": 201088},
        **{"eos_token_id": 200002, "quantization_config": {"quant_method": "mxfp4"}, "rope_theta": 150000},
    }
    spec = read(tmp_path, config)
    assert (spec.dtype, spec.max_position, spec.attention_sinks) == ("bfloat16", 131072, True)
    assert windows(spec)[:2] == [128, None]
    assert (spec.layers[0].rope.scaling, spec.layers[0].rope.param("truncate")) == ("yarn", False)
    cache = cache_spec(spec, spec.dtype, 16)
    per_token = sum(cache.layer_bytes(layer) for layer in cache.layers if layer.retention.kept() is None) / 16
    assert per_token == 24576, "of the full layers; the others keep 128 tokens"


def test_gemma4_stores_keys_that_are_values_once(tmp_path: Path) -> None:
    """The 31B model as published: a full layer keeps 4 heads of 512 values and the 128 elements of keys that rotate."""
    text = {
        **{"model_type": "gemma4_text", "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 60},
        **{"num_attention_heads": 32, "num_key_value_heads": 16, "num_global_key_value_heads": 4, "head_dim": 256},
        **{"global_head_dim": 512, "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "dtype": "bfloat16"},
        **{"sliding_window": 1024, "max_position_embeddings": 262144, "final_logit_softcapping": 30.0},
        **{"use_bidirectional_attention": "vision"},
    }
    spec = read(tmp_path, {"architectures": ["Gemma4ForConditionalGeneration"], "text_config": text})
    cache = cache_spec(spec, "bfloat16", 16)
    full = [layer for layer in cache.layers if layer.retention.kept() is None]
    assert [layer.layer for layer in full] == [*range(5, 60, 6)]
    apart = replace(full[0], k_dim=512, format=dense("bfloat16"))
    assert (cache.layer_bytes(full[0]) / 16, cache.layer_bytes(apart) / 16) == (4 * 640 * 2, 4 * 1024 * 2)
    assert not cache.check()
