"""Granite 3 and 4 dense: a Llama whose embeddings, scores, residuals and logits are scaled. arXiv 2408.13359 (muP)."""

from __future__ import annotations

from typing import Any

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
        view,
        "granite",
        heads,
        layers,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=view.flag("mlp_bias", False),
        **multipliers(view),
    )


def multipliers(view: ConfigView) -> dict[str, Any]:
    return {
        "query_scale": view.number("attention_multiplier", 1.0),
        "embed_scale": view.number("embedding_multiplier", 1.0),
        "residual_scale": view.number("residual_multiplier", 1.0),
        "logit_scale": 1.0 / view.number("logits_scaling", 1.0),
    }


FAMILIES = {"GraniteForCausalLM": Family(read)}
