"""GGUF headers byte by byte, after the public format description: what no library would write can be written here."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
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
