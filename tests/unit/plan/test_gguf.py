"""GGUF headers, from files written here byte by byte after the public format description."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kvtrove.kv.retention import Full, SlidingWindow
from kvtrove.models.spec import ModelError
from kvtrove.plan.gguf import LONGEST_KEPT, Skipped, read_header
from kvtrove.plan.kv import KVBytes, cache_of, kv_bytes
from kvtrove.plan.source import read_model

U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
F16, Q4_K = 1, 12
LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 32,
    "llama.embedding_length": 4096,
    "llama.feed_forward_length": 14_336,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.context_length": 131_072,
    "llama.rope.freq_base": 500_000.0,
    "tokenizer.ggml.tokens": ["a"] * 5000,
}


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def value(item: Any) -> tuple[int, bytes]:
    if isinstance(item, bool):
        return BOOL, struct.pack("<?", item)
    if isinstance(item, str):
        return STRING, string(item)
    if isinstance(item, float):
        return F32, struct.pack("<f", item)
    if isinstance(item, list):
        kind = value(item[0])[0]
        return ARRAY, struct.pack("<IQ", kind, len(item)) + b"".join(value(x)[1] for x in item)
    return U32, struct.pack("<I", item)


def gguf(
    metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, tuple[int, ...]]] = {}, version: int = 3
) -> bytes:
    """tensors: name -> (ggml type, shape)."""
    pairs = b"".join(string(key) + struct.pack("<I", value(x)[0]) + value(x)[1] for key, x in metadata.items())
    infos = b"".join(
        string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}QIQ", *shape, kind, 0)
        for name, (kind, shape) in tensors.items()
    )
    return b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)) + pairs + infos


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_metadata_and_tensors_are_read(tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", gguf(LLAMA, {"x": (Q4_K, (256, 10)), "y": (F16, (7,))}))
    header = read_header(path)
    assert header.metadata["llama.block_count"] == 32
    assert header.metadata["llama.rope.freq_base"] == 500_000.0
    assert header.metadata["tokenizer.ggml.tokens"] == Skipped(5000), "long arrays are stepped over"
    assert [(t.name, t.num_elements, t.nbytes) for t in header.tensors] == [("x", 2560, 1440), ("y", 7, 14)]
    assert len(LLAMA["tokenizer.ggml.tokens"]) > LONGEST_KEPT


def test_a_gguf_is_planned_like_its_config(tmp_path: Path) -> None:
    model = read_model(written(tmp_path / "m.gguf", gguf(LLAMA)))
    assert kv_bytes(cache_of(model, "bf16", 32)) == KVBytes(131_072, 0)
    assert (model.vocab_size, model.max_position, model.spec) == (5000, 131_072, None)


def test_weights_are_what_the_tensors_take(tmp_path: Path) -> None:
    tensors = {
        "token_embd.weight": (F16, (4096, 100)),
        "output.weight": (F16, (4096, 100)),
        "blk.0.ffn_gate_exps.weight": (Q4_K, (256, 64, 8)),
    }
    model = read_model(written(tmp_path / "m.gguf", gguf(LLAMA, tensors)))
    assert model.weight_bytes == 2 * 4096 * 100 * 2 + 256 * 64 * 8 // 256 * 144
    assert model.parameters.experts == 256 * 64 * 8
    assert model.parameters.every_token == 4096 * 100, "the embedding is a lookup, the output matrix is not"
    assert model.exact_weights


def test_a_directory_of_ggufs_and_a_split_model(tmp_path: Path) -> None:
    for part in (1, 2):
        data = gguf({**LLAMA, "split.count": 2}, {f"t{part}": (F16, (10,))})
        written(tmp_path / f"big-{part:05}-of-00002.gguf", data)
    assert read_model(tmp_path).weight_bytes == 40


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "big-00001-of-00002.gguf", gguf({**LLAMA, "split.count": 2}))
    with pytest.raises(ModelError, match=r"big-00002-of-00002.gguf: the file is missing"):
        read_model(path)


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({"attention.sliding_window_pattern": [True, True, False]}, [SlidingWindow(64), SlidingWindow(64), Full()]),
        ({"attention.sliding_window_pattern": 3}, [SlidingWindow(64), SlidingWindow(64), Full()]),
        ({}, [SlidingWindow(64)] * 3),
        ({"attention.sliding_window": 0}, [Full()] * 3),
    ],
)
def test_sliding_layers_are_found(changes: dict[str, Any], rules: list[Any], tmp_path: Path) -> None:
    """Where a Gemma-3 file says nothing, every sixth layer is full, as llama.cpp has it: none of three."""
    named = {key.replace("llama.", "gemma3."): x for key, x in LLAMA.items()} | {"general.architecture": "gemma3"}
    named |= {"gemma3.block_count": 3, "gemma3.attention.sliding_window": 64}
    model = read_model(written(tmp_path / "m.gguf", gguf(named | {f"gemma3.{k}": x for k, x in changes.items()})))
    assert [layer.retention for layer in model.layers] == rules


def test_a_latent_is_found(tmp_path: Path) -> None:
    named = {key.replace("llama.", "deepseek2."): x for key, x in LLAMA.items()} | {"general.architecture": "deepseek2"}
    named |= {
        "deepseek2.attention.kv_lora_rank": 512,
        "deepseek2.rope.dimension_count": 64,
        "deepseek2.block_count": 61,
    }
    named |= {"deepseek2.attention.key_length": 192, "deepseek2.attention.value_length": 128}
    path = written(tmp_path / "m.gguf", gguf(named, {"t": (F16, (100,))}))
    assert kv_bytes(cache_of(read_model(path), "bf16", 32)) == KVBytes(70_272, 0)


BROKEN = {
    "other bytes": (b"GGML" + bytes(60), "it does not begin with 'GGUF'"),
    "old version": (gguf(LLAMA, version=1), "version 1 is not one of 2, 3"),
    "cut off": (gguf(LLAMA)[:200], "the GGUF header is cut off; download the file again"),
    "absurd length": (gguf({})[:8] + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**60), "is cut off"),
    "empty": (b"", "not a readable GGUF file"),
    "unknown type": (gguf({}, {"t": (99, (1,))}), "tensor 't' has the unknown ggml type 99"),
    "no architecture": (gguf({"a": 1}), "'general.architecture' is missing from its metadata"),
    "nothing else": (gguf({"general.architecture": "llama"}), "'num_attention_heads' is missing"),
}


@pytest.mark.parametrize(("data", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_with_what_is_wrong(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        read_model(written(tmp_path / "m.gguf", data))
    assert "m.gguf" in str(caught.value)
