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


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4.25),
        ({"quant_method": "awq", "bits": 4, "group_size": -1}, 4),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5),
        ({"quant_method": "bitsandbytes", "load_in_4bit": False}, 8),
        ({"quant_method": "mxfp4"}, 4.25),
    ],
)
def test_quantised_weights_are_estimated_and_not_served(settings: dict[str, Any], bits: float, tmp_path: Path) -> None:
    model = read_model(configs.write(tmp_path, configs.LLAMA_31_8B, quantization_config=settings))
    assert model.weight_bytes == pytest.approx(8.03e9 * bits / 8, rel=0.001)
    assert not model.exact_weights
    assert model.spec is None


ERRORS = {
    "nothing there": (None, "there is no such file; give a checkpoint directory, a config.json or a .gguf file"),
    "no json": ("{", "cannot be read as JSON"),
    "missing key": (json.dumps({**configs.LLAMA_31_8B, "vocab_size": None}), "'vocab_size' is missing"),
    "no architecture, no keys": ("{}", "'num_attention_heads' is missing"),
    "unknown quantisation": (
        json.dumps({**configs.LLAMA_31_8B, "quantization_config": {"quant_method": "magic"}}),
        "'quant_method' 'magic' is not planned; planned: awq",
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
