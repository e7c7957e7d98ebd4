"""What the metadata of a GGUF file says, under the names of a Hugging Face config.json. No torch."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import Any

from kvtrove.models.config_view import ConfigView
from kvtrove.models.gguf.header import GGUFHeader

MOST_LAYERS = 4096
# What llama.cpp takes when the file does not say which layers slide: every n-th one is full.
_PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4}
_MODEL_TYPES = {"deepseek2": "deepseek_v3", "hunyuan-moe": "hunyuan_v1_moe", "qwen3moe": "qwen3_moe"}
_SIZES = {
    "hidden_size": "embedding_length",
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
_PER_LAYER = {
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
}
"""Keys that some files give as one number per layer."""
_LAYER = re.compile(r"blk\.(\d+)\.")


def as_config(header: GGUFHeader) -> dict[str, Any]:
    """The sizes of the model, of any architecture. ModelError names the key of the metadata that cannot be."""
    kind = header.architecture
    view = ConfigView(header.metadata, str(header.path))
    config: dict[str, Any] = {"model_type": _MODEL_TYPES.get(kind, kind), "dtype": stored_dtype(header)}
    config["num_hidden_layers"] = _layers(header, view)
    for name, key in _SIZES.items():
        if value := view.size(f"{kind}.{key}", 0, least=0):  # 0 stands for none
            config[name] = value
    for name, key in _PER_LAYER.items():
        if sizes := _per_layer(view, f"{kind}.{key}", config["num_hidden_layers"]):
            config[name] = sizes
    if "kv_lora_rank" in config:  # key_length is the latent's width in newer files, which add the heads' own as *_mla
        width, values = (view.size(f"{kind}.attention.{key}_mla", 0, 0) for key in ("key_length", "value_length"))
        config["qk_nope_head_dim"] = (width or config.get("head_dim", 0)) - config.get("qk_rope_head_dim", 0)
        config["v_head_dim"] = values or config.get("v_head_dim", 0)
    heads = config.get("num_attention_heads")
    if isinstance(heads, list):
        config["num_attention_heads"] = max(heads)
    if rows := _vocabulary(header):
        config["vocab_size"] = rows
    pattern = header.metadata.get(f"{kind}.attention.sliding_window_pattern", _PATTERNS.get(kind))
    if isinstance(pattern, array):
        config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]
    elif pattern:
        config["sliding_window_pattern"] = pattern
    return config


def _layers(header: GGUFHeader, view: ConfigView) -> int:
    """As many layers as have tensors at most: a number that is wrong must not cost memory."""
    key = f"{header.architecture}.block_count"
    count = view.size(key)
    found = {int(match[1]) for tensor in header.tensors if (match := _LAYER.match(tensor.name))}
    most = 1 + max(found) if found else MOST_LAYERS
    if count > most:
        raise view.error(f"{key!r} is {count}, but there are at most {most} layers")
    drafting = view.size(f"{header.architecture}.nextn_predict_layers", 0, least=0)  # they come last
    if drafting >= count:
        raise view.error(f"{key!r} is {count}, of which {drafting} draft; expected more")
    return count - drafting


def _per_layer(view: ConfigView, key: str, layers: int) -> int | list[int]:
    """0 where the key is missing; one number where all layers have the same."""
    value = view.get(key)
    if not isinstance(value, array):
        return view.size(key, 0, least=0)
    numbers = value[:layers].tolist()
    if len(numbers) < layers or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise view.error(f"{key!r} is {numbers[:8]!r}, expected one whole number for each of {layers} layers")
    return numbers if len(set(numbers)) > 1 else numbers[0]


def _vocabulary(header: GGUFHeader) -> int:
    """Rows of the embedding, else tokens of the vocabulary; 0 where both are missing."""
    table = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    if table is not None and len(table.shape) == 2:
        return table.shape[1]
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, Sequence) else 0


_FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def stored_dtype(header: GGUFHeader) -> str:
    """The dtype of most elements of matrices; bfloat16 where they are quantised, float16 where there are none."""
    counts: dict[str, int] = {}
    for tensor in header.tensors:
        if len(tensor.shape) > 1:
            counts[tensor.type.name] = counts.get(tensor.type.name, 0) + tensor.num_elements
    return _FLOATS.get(max(counts, key=counts.__getitem__), "bfloat16") if counts else "float16"
