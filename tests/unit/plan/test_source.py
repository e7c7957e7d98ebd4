"""Where a model comes from: directories, lone configs, and weight files whose real size wins."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from kvtrove.models.spec import ModelError
from kvtrove.plan.source import read_model
from tests.unit.plan import configs

TINY: dict[str, Any] = {
    **configs.LLAMA_2_7B,
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
}
BF16, F32 = "BF16", "F32"


def safetensors(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A file with a true header and no data: a planner must not read further."""
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, (dtype, shape) in tensors.items()
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def test_a_config_under_any_name(tmp_path: Path) -> None:
    path = configs.write(tmp_path, configs.LLAMA_31_8B).rename(tmp_path / "llama.json")
    assert read_model(path).weight_bytes == 16_060_522_496
    assert read_model(path, "float32").weight_bytes == 2 * 16_060_522_496


def test_the_real_size_of_the_weights_wins(tmp_path: Path) -> None:
    configs.write(tmp_path, TINY)
    counted = read_model(tmp_path)
    safetensors(tmp_path / "model.safetensors", {"model.embed_tokens.weight": (BF16, [100, 64])})
    assert read_model(tmp_path).weight_bytes == 100 * 64 * 2 < counted.weight_bytes


def test_weights_are_counted_in_the_dtype_they_will_have(tmp_path: Path) -> None:
    configs.write(tmp_path, TINY)
    safetensors(tmp_path / "model.safetensors", {"model.norm.weight": (F32, [64]), "model.x": ("I32", [10])})
    assert read_model(tmp_path, "bfloat16").weight_bytes == 64 * 2 + 10 * 4


def test_only_what_the_decoder_loads_counts(tmp_path: Path) -> None:
    configs.write(tmp_path, TINY, tie_word_embeddings=True)
    tensors = {"vision.x": (BF16, [1000]), "lm_head.weight": (BF16, [100, 64]), "model.norm.weight": (BF16, [64])}
    safetensors(tmp_path / "model.safetensors", tensors)
    assert read_model(tmp_path).weight_bytes == 64 * 2, "no vision tower, and the output matrix is the embedding"


def test_shards_are_those_that_the_index_names(tmp_path: Path) -> None:
    configs.write(tmp_path, TINY)
    for name in ("a", "b", "other"):
        safetensors(tmp_path / f"{name}.safetensors", {f"model.{name}": (BF16, [50])})
    index = {"weight_map": {"model.a": "a.safetensors", "model.b": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_model(tmp_path).weight_bytes == 200


_INT4 = {"num_bits": 4, "type": "int", "group_size": 128}


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4.25),
        ({"quant_method": "awq", "bits": 4, "group_size": -1}, 4),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5),
        ({"quant_method": "bitsandbytes", "load_in_4bit": False}, 8),
        ({"quant_method": "mxfp4"}, 4.25),
        ({"bits": 4, "group_size": 64}, 4.5),
        ({"quant_method": "auto-round", "bits": 2, "group_size": 32}, 3),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": _INT4}}}, 4.125),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, 8),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5),
        ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 8, "group_size": 64}}}, 8.5),
        ({"quant_method": "hqq"}, 4.5),
        ({"quant_method": "aqlm", "nbits_per_codebook": 16, "num_codebooks": 1, "in_group_size": 8}, 2),
        ({"quant_method": "torchao", "quant_type": "int4_weight_only"}, 4.5),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3"}}}, 8),
    ],
)
def test_quantised_weights_are_estimated_and_not_served(settings: dict[str, Any], bits: float, tmp_path: Path) -> None:
    model = read_model(configs.write(tmp_path, configs.LLAMA_31_8B, quantization_config=settings))
    assert model.weight_bytes == pytest.approx(8.03e9 * bits / 8, rel=0.001)
    assert not model.exact_weights
    assert model.spec is None


def test_mlx_says_it_under_another_key(tmp_path: Path) -> None:
    model = read_model(configs.write(tmp_path, configs.LLAMA_31_8B, quantization={"bits": 4, "group_size": 64}))
    assert model.weight_bytes == pytest.approx(8.03e9 * 4.5 / 8, rel=0.001)


def test_quantisation_changes_no_byte_of_the_cache(tmp_path: Path) -> None:
    """The text part of a multimodal checkpoint leaves out what equals its family's defaults, quantised or not."""
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    config: dict[str, Any] = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    plain = read_model(configs.write(tmp_path, config))
    for method in ({"quant_method": "awq", "bits": 4}, {"quant_method": "bitsandbytes", "load_in_4bit": True}):
        quantised = read_model(configs.write(tmp_path, config, quantization_config=method))
        assert quantised.layers == plain.layers
        assert quantised.weight_bytes < plain.weight_bytes / 3


def test_an_unknown_model_type_is_planned_as_an_assumption(tmp_path: Path) -> None:
    config = {**configs.LLAMA_31_8B, "architectures": ["NewForCausalLM"], "model_type": "new"}
    assert read_model(configs.write(tmp_path, config)).assumed == (
        "model type 'new' is not known: read as plain attention"
    )
    assert not read_model(configs.write(tmp_path, configs.LLAMA_31_8B)).assumed


ERRORS = {
    "nothing there": (None, "there is no such file; give a checkpoint directory, a config.json or a .gguf file"),
    "no json": ("{", "cannot be read as JSON"),
    "missing key": (json.dumps({**configs.LLAMA_31_8B, "vocab_size": None}), "'vocab_size' is missing"),
    "no architecture, no keys": ("{}", "'num_attention_heads' is missing"),
    "unknown quantisation": (
        json.dumps({**configs.LLAMA_31_8B, "quantization_config": {"quant_method": "magic"}}),
        "'quant_method' 'magic' says no width and is not planned; planned: aqlm",
    ),
    "a width that is nowhere": (
        json.dumps({**configs.LLAMA_31_8B, "quantization_config": {"quant_method": "torchao"}}),
        "says no width; expected it in 'quant_type'",
    ),
    "an algorithm of another tool": (
        json.dumps({**configs.LLAMA_31_8B, "quantization_config": {"quant_method": "modelopt", "quant_algo": "W1"}}),
        "'quant_algo' 'W1' is not planned; planned: FP8",
    ),
}


@pytest.mark.parametrize(("text", "message"), ERRORS.values(), ids=ERRORS)
def test_what_cannot_be_read_is_named(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ModelError, match=message) as caught:
        read_model(path)
    assert "m.json" in str(caught.value)


def test_a_truncated_weight_file_is_named(tmp_path: Path) -> None:
    configs.write(tmp_path, TINY)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 10**6) + b"{}")
    with pytest.raises(ModelError, match=r"model\.safetensors: not a complete safetensors file"):
        read_model(tmp_path)
