"""Llama 2 and 3: the plain decoder. arXiv 2307.09288, 2407.21783."""

from __future__ import annotations

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import FULL, Family, build_layers, build_spec, read_heads
from kvtrove.models.rope_config import read_rope
from kvtrove.models.spec import ModelSpec


def read(view: ConfigView) -> ModelSpec:
    heads = read_heads(view)
    types = [FULL] * view.size("num_hidden_layers")
    layers = build_layers(view, heads, types, {FULL: read_rope(view, heads.dim)}, None)
    bias = view.flag("attention_bias", False)
    return build_spec(
        view, "llama", heads, layers, attention_bias=bias, output_bias=bias, mlp_bias=view.flag("mlp_bias", False)
    )


FAMILIES = {"LlamaForCausalLM": Family(read)}
