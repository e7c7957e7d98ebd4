"""Every rope scaling against transformers, inside and beyond the original context, in every layout of config.json."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from kvtrove.models.config_reader import read_spec
from kvtrove.models.layers.rope import RotaryEmbedding
from tests.checkpoints import VOCAB, Checkpoints
from tests.golden.harness import PagedModel, expected_logits, hugging_face

ORIGINAL, LENGTH = 32, 110
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0},
    "yarn with betas": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "beta_slow": 0.5},
    "yarn untruncated": {"rope_type": "yarn", "factor": 4.0, "truncate": False, "attention_factor": 1.2},
    "yarn with mscale": {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.7},
}


def checkpoint(checkpoints: Checkpoints, scaling: dict[str, Any], **more: Any) -> Path:
    original = {"original_max_position_embeddings": ORIGINAL} if scaling["rope_type"] in ("llama3", "yarn") else {}
    rope = {"rope_theta": 5_000.0, **scaling, **original}
    return checkpoints.get(
        "llama", rope_parameters=rope, num_hidden_layers=2, **{"max_position_embeddings": 128, **more}
    )


def tokens(length: int) -> list[int]:
    return random.Random(3).choices(range(4, VOCAB), k=length)


@pytest.mark.parametrize("name", SCALINGS)
def test_scaling_equals_transformers_beyond_the_original_context(name: str, checkpoints: Checkpoints) -> None:
    directory = checkpoint(checkpoints, SCALINGS[name])
    prompt = tokens(LENGTH)
    expected = expected_logits(hugging_face(directory), prompt)
    model = PagedModel(directory)
    got = torch.cat([model.step({0: part})[0] for part in (prompt[:50], prompt[50:100], *([t] for t in prompt[100:]))])
    assert (got - expected).abs().max() < 1e-4
    plain = expected_logits(hugging_face(checkpoint(checkpoints, {"rope_type": "default"})), prompt)
    assert (plain - expected).abs().max() > 1e-2, "the scaling must matter at these positions"


def test_dynamic_is_exact_within_the_original_context(checkpoints: Checkpoints) -> None:
    directory = checkpoint(checkpoints, {"rope_type": "dynamic", "factor": 2.0}, max_position_embeddings=64)
    prompt = tokens(64)
    got = PagedModel(directory).step({0: prompt})[0]
    assert (got - expected_logits(hugging_face(directory), prompt)).abs().max() < 1e-4


def test_dynamic_served_beyond_has_the_base_of_the_longest_context(checkpoints: Checkpoints) -> None:
    directory = checkpoint(checkpoints, {"rope_type": "dynamic", "factor": 2.0}, max_position_embeddings=64)
    spec = read_spec(directory)
    assert (spec.max_position, spec.longest_context) == (64, 128)
    inv_freq, _ = ROPE_INIT_FUNCTIONS["dynamic"](AutoConfig.from_pretrained(directory), None, seq_len=128)
    torch.testing.assert_close(RotaryEmbedding.build(spec.layers[0].rope, 65, "cpu").inv_freq, inv_freq)


def test_longrope_takes_short_factors_for_the_original_context_and_long_ones_beyond(checkpoints: Checkpoints) -> None:
    directory = checkpoints.get("phi3_long")
    reference = hugging_face(directory)
    for length, served in ((32, 32), (90, 128)):
        prompt = tokens(length)
        got = PagedModel(directory, max_model_len=served).step({0: prompt})[0]
        assert (got - expected_logits(reference, prompt)).abs().max() < 1e-4
    assert PagedModel(directory).model.ropes.keys() == {read_spec(directory).layers[0].rope}


@pytest.mark.parametrize("name", SCALINGS)
def test_the_layout_of_older_transformers_reads_the_same(name: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    new = checkpoint(checkpoints, SCALINGS[name])
    config = json.loads((new / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    scaling["type"] = scaling.pop("rope_type")
    old = {**config, "rope_scaling": scaling, "torch_dtype": config.pop("dtype")}
    shutil.copytree(new, tmp_path, dirs_exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert read_spec(tmp_path) == read_spec(new)


GEMMA3 = {
    "head_dim": 256,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "sliding_window": 1024,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    "Qwen2.5-7B with YaRN": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 3584,
        "num_attention_heads": 28,
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"},
    },
    "Gemma-3-4b, old keys": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **GEMMA3,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_local_base_freq": 12000.0,
        "rope_theta": 2000000.0,
    },
    "Gemma-3-4b, new keys": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        **GEMMA3,
        "rope_parameters": {
            "full_attention": {"factor": 8.0, "rope_theta": 1000000.0, "rope_type": "linear"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
    },
    "Phi-3-mini-128k": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": 3072,
        "num_attention_heads": 32,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0 + i / 100 for i in range(48)],
            "long_factor": [1.0 + i for i in range(48)],
        },
    },
    "Phi-4-mini": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": 3072,
        "num_attention_heads": 24,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0] * 48,
            "long_factor": [1.0 + i / 7 for i in range(48)],
        },
    },
}
_REST = {"vocab_size": 1000, "pad_token_id": 0, "num_hidden_layers": 6, "intermediate_size": 128, "rms_norm_eps": 1e-6}


@pytest.mark.parametrize("name", PUBLISHED)
def test_angles_of_published_configs_equal_transformers(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**_REST, **PUBLISHED[name]}))
    spec = read_spec(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        rotary_class = type(AutoModelForCausalLM.from_config(config).model.rotary_emb)
    rotary = rotary_class(config)
    positions = torch.tensor([0, 1, 5, 1000, 4095])  # longrope: within the original context
    for layer, kind in zip(spec.layers, getattr(config, "layer_types", None) or [None] * 6, strict=True):
        nested = (kind,) if isinstance(rotary.rope_type, dict) else ()
        cos, sin = rotary(torch.zeros(1), positions[None], *nested)
        ours = RotaryEmbedding.build(layer.rope, 4096, "cpu").at(positions, torch.float32)
        half = layer.rope.rotary_dim // 2
        torch.testing.assert_close(ours.cos[:, 0], cos[0, :, :half], atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.sin[:, 0], sin[0, :, :half], atol=1e-5, rtol=0)
