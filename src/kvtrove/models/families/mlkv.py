"""MLKV, multi-layer key-value heads (arXiv 2406.09297): runs of layers read the keys and values of their first one.

Keys of config.json are Llama's, and `num_key_value_layers`, how many layers store; it divides the number of layers.
Tensors have Llama's names, and layers that store nothing have neither `k_proj` nor `v_proj`. With one kv head, several
layers have one together. Tokens of a prompt that nobody asks about end before the last run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import FULL, Family, build_layers, build_spec, read_heads
from kvtrove.models.rope_config import read_rope
from kvtrove.models.spec import LayerSpec, ModelSpec


def read(view: ConfigView) -> ModelSpec:
    heads, count = read_heads(view), view.size("num_hidden_layers")
    stored = view.size("num_key_value_layers", count)
    if count % stored:
        raise view.error(f"'num_key_value_layers' {stored} does not divide 'num_hidden_layers' {count}")
    run = count // stored
    layers = build_layers(view, heads, [FULL] * count, {FULL: read_rope(view, heads.dim)}, None)
    shared = reading(layers, [i - i % run if i % run else None for i in range(count)])
    return build_spec(view, "mlkv", heads, shared, **biases(view))


def reading(layers: Sequence[LayerSpec], sources: Sequence[int | None]) -> tuple[LayerSpec, ...]:
    """The layers, each reading what another stores, or None: what it stores for itself."""
    return tuple(
        replace(layer, cache=replace(layer.kv, source=source)) for layer, source in zip(layers, sources, strict=True)
    )


def biases(view: ConfigView) -> dict[str, Any]:
    """Fields of Llama's flags."""
    bias = view.flag("attention_bias", False)
    return {"attention_bias": bias, "output_bias": bias, "mlp_bias": view.flag("mlp_bias", False)}


FAMILIES = {"MlkvForCausalLM": Family(read)}
