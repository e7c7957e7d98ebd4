"""The header of a GGUF file: key/value metadata and tensor descriptions, by the public format description.

    | "GGUF" | version u32 | tensors u64 | pairs u64 | pair ... | tensor description ... | padding | tensor data ... |
    pair:   key string, type u32, value          string: length u64, UTF-8 bytes          all little-endian

Only the header is touched, so a file of any size takes milliseconds.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from kvtrove.models.spec import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
LONGEST_KEPT = 4096
"""Array elements that are kept; longer arrays (vocabularies) are stepped over and only their length remembered."""

# ggml type -> (elements per block, bytes per block)
TYPE_SIZES: Mapping[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """shape: fastest dimension first, as the file has it."""

    name: str
    shape: tuple[int, ...]
    type: int

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        elements, size = TYPE_SIZES[self.type]
        return self.num_elements // elements * size


@dataclass(frozen=True)
class Skipped:
    """An array too long to keep."""

    length: int


@dataclass(frozen=True)
class GGUFHeader:
    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]


def read_header(path: Path) -> GGUFHeader:
    """Of one file, or of all files of a split model given its first. ModelError when it is no complete GGUF header."""
    header = _read_one(path)
    count = int(header.metadata.get("split.count", 1))
    if count < 2:
        return header
    found = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name)
    if not found:
        raise ModelError(f"{path}: is one of {count} parts, but its name does not end in -00001-of-{count:05}.gguf")
    tensors: list[TensorInfo] = []
    for part in range(1, count + 1):
        sibling = path.with_name(f"{found[1]}-{part:05}-of-{count:05}.gguf")
        tensors.extend(_read_one(sibling).tensors)
    return GGUFHeader(header.metadata, tuple(tensors))


def _read_one(path: Path) -> GGUFHeader:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(data))
    except FileNotFoundError:
        raise ModelError(f"{path}: the file is missing") from None
    except struct.error:
        raise ModelError(f"{path}: the GGUF header is cut off; download the file again") from None
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"{path}: not a readable GGUF file: {error}") from error


class _Cursor:
    """Reads little-endian values one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(code)
        return value

    def string(self) -> str:
        start = self.step(self.scalar("Q"))
        return self.data[start : self.at].decode("utf-8", "replace")

    def step(self, size: int) -> int:
        """Move `size` bytes on; returns where it was."""
        start = self.at
        if start + size > len(self.data):
            raise struct.error
        self.at = start + size
        return start

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise ValueError(f"metadata type {kind} is unknown")
        return self.scalar(_SCALARS[kind])

    def array(self) -> Any:
        kind, length = self.scalar("I"), self.scalar("Q")
        if kind in _SCALARS and length > LONGEST_KEPT:
            self.step(length * struct.calcsize(_SCALARS[kind]))
            return Skipped(length)
        if kind == _STRING and length > LONGEST_KEPT:
            for _ in range(length):
                self.step(self.scalar("Q"))
            return Skipped(length)
        return [self.value(kind) for _ in range(length)]


def _parse(cursor: _Cursor) -> GGUFHeader:
    if cursor.data[cursor.step(4) : 4] != MAGIC:
        raise ValueError("it does not begin with 'GGUF'")
    version = cursor.scalar("I")
    if version not in VERSIONS:
        raise ValueError(f"version {version} is not one of {', '.join(map(str, VERSIONS))}")
    num_tensors, num_pairs = cursor.scalar("Q"), cursor.scalar("Q")
    metadata = {}
    for _ in range(num_pairs):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("I"))
    return GGUFHeader(metadata, tuple(_tensor(cursor) for _ in range(num_tensors)))


def _tensor(cursor: _Cursor) -> TensorInfo:
    name = cursor.string()
    shape = tuple(cursor.scalar("Q") for _ in range(cursor.scalar("I")))
    kind, _offset = cursor.scalar("I"), cursor.scalar("Q")
    if kind not in TYPE_SIZES:
        raise ValueError(f"tensor {name!r} has the unknown ggml type {kind}")
    return TensorInfo(name, shape, kind)


# What llama.cpp takes when the file does not say which layers slide: every n-th one is full.
_PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4}
_MODEL_TYPES = {"deepseek2": "deepseek_v3", "hunyuan-moe": "hunyuan_v1_moe"}
_KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "v_head_dim": "attention.value_length",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
    "q_lora_rank": "attention.q_lora_rank",
    "sliding_window": "attention.sliding_window",
    "attention_chunk_size": "attention.chunk_size",
    "num_kv_shared_layers": "attention.shared_kv_layers",
    "kv_lora_rank": "attention.kv_lora_rank",
    "qk_rope_head_dim": "rope.dimension_count",
    "index_head_dim": "attention.indexer.key_length",
    "n_routed_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}


def as_config(header: GGUFHeader) -> dict[str, Any]:
    """The metadata under the names of a Hugging Face config.json."""
    kind = str(header.metadata.get("general.architecture", ""))
    config: dict[str, Any] = {"model_type": _MODEL_TYPES.get(kind, kind), "dtype": "float16"}
    for name, key in _KEYS.items():
        value = header.metadata.get(f"{kind}.{key}")
        if value:  # 0 stands for none
            config[name] = value
    if "kv_lora_rank" in config:  # key_length is the latent's width in newer files, which add the heads' own as *_mla
        width, values = (header.metadata.get(f"{kind}.attention.{name}_mla") for name in ("key_length", "value_length"))
        config["qk_nope_head_dim"] = (width or config.get("head_dim", 0)) - config.get("qk_rope_head_dim", 0)
        config["v_head_dim"] = values or config.get("v_head_dim", 0)
    heads = config.get("num_attention_heads")
    if isinstance(heads, list):
        config["num_attention_heads"] = max(heads)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if tokens is not None:
        config.setdefault("vocab_size", tokens.length if isinstance(tokens, Skipped) else len(tokens))
    pattern = header.metadata.get(f"{kind}.attention.sliding_window_pattern", _PATTERNS.get(kind))
    if isinstance(pattern, list):
        config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    elif pattern:
        config["sliding_window_pattern"] = pattern
    return config
