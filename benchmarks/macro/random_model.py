"""Checkpoints of random weights in a given shape: as large and as slow as a real one, with nothing to say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """A decoder of the Llama or the Qwen2 family, its output matrix tied to the embedding."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    head_dim: int
    context: int = 32_768

    def config(self, dtype: str) -> dict[str, object]:
        return {
            "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[self.family]],
            "model_type": self.family,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10_000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "torch_dtype": dtype,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }


SHAPES = {
    "M1": Shape("qwen2", 896, 24, 14, 2, 4864, 32_000, 64),
    "small": Shape("llama", 512, 6, 8, 8, 1024, 8000, 128),
    "M3": Shape("llama", 1024, 16, 16, 16, 2816, 32_000, 64),
}


def write_random_model(directory: Path, shape: Shape, dtype: str = "float32") -> Path:
    """config.json and model.safetensors; the same shape gives the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(shape.config(dtype), indent=1))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(size, generator=generator).mul_(size[-1] ** -0.5).to(getattr(torch, dtype))
        if len(size) == 2
        else _vector(name, size[0], getattr(torch, dtype))
        for name, size in _tensors(shape)
    }
    save_file(tensors, directory / "model.safetensors")
    return directory


def _vector(name: str, size: int, dtype: torch.dtype) -> Tensor:
    return (torch.zeros if name.endswith("bias") else torch.ones)(size, dtype=dtype)


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, q, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocab, hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(shape.layers):
        at = f"model.layers.{layer}"
        for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            yield f"{at}.self_attn.{name}.weight", (rows, hidden)
            if shape.family == "qwen2":
                yield f"{at}.self_attn.{name}.bias", (rows,)
        yield f"{at}.self_attn.o_proj.weight", (hidden, q)
        yield f"{at}.mlp.gate_proj.weight", (shape.ffn, hidden)
        yield f"{at}.mlp.up_proj.weight", (shape.ffn, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, shape.ffn)
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
